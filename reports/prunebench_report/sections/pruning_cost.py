"""What pruning itself costs: time, training, tokens seen, peak memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunebench_report.data.columns import Row
from prunebench_report.text import count, seconds, size

if TYPE_CHECKING:
    from prunebench_report.data.report_input import ReportInput


def section(given: ReportInput) -> list[dict[str, Any]]:
    """One row for each pruned cell with a result, with bars in per cent of the longest."""
    known = [
        row
        for row in given.detailed_rows
        if row["status"] == "ok" and row["method"] != "dense" and row.get("prune_s") is not None
    ]
    longest = max((row["prune_s"] + (row["recover_s"] or 0.0) for row in known), default=0.0)
    return [_row(row, longest or 1.0) for row in known]


def _row(row: Row, longest: float) -> dict[str, Any]:
    recovery, gpu = row["recover_s"], row["prune_peak_gpu_bytes"]
    return {
        "id": row["cell"],
        "name": row["name"],
        "prune": seconds(row["prune_s"]),
        "prune_width": round(100 * row["prune_s"] / longest, 1),
        "recover": None if recovery is None else seconds(recovery),
        "recover_width": round(100 * (recovery or 0.0) / longest, 1),
        "tokens": _tokens(row),
        "rss": size(row["prune_peak_rss_bytes"]),
        "gpu": None if gpu is None else size(gpu),
        "total": seconds(row["total_s"]),
    }


def _tokens(row: Row) -> str:
    # Means over seeds need not be whole numbers.
    seen, trained = row["calibration_tokens"], row["recover_tokens"]
    text = "none" if not seen else f"{count(round(seen))} of calibration"
    return text if trained is None else f"{text}, {count(round(trained))} of training"
