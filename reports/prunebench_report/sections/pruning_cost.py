"""What pruning itself costs: time, training, tokens seen, peak memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunebench_report.data.columns import Row
from prunebench_report.figures.scale import longest_bar
from prunebench_report.text import count, seconds, size

if TYPE_CHECKING:
    from prunebench_report.data.report_input import ReportInput


def section(given: ReportInput) -> list[dict[str, Any]]:
    """One row for each pruned cell with a result, with bars in per cent of the scale."""
    known = [
        row
        for row in given.detailed_rows
        if row["status"] == "ok" and row["method"] != "dense" and row.get("prune_s") is not None
    ]
    # Zero if nothing was pruned, or in no time
    longest = longest_bar([_time(row) for row in known])
    return [_row(row, longest or 1.0) for row in known]


def _row(row: Row, longest: float) -> dict[str, Any]:
    recovery, gpu = row["recover_s"], row["prune_peak_gpu_bytes"]
    pruned = round(min(100 * row["prune_s"] / longest, 100), 1)
    return {
        "id": row["cell"],
        "name": row["name"],
        "prune": seconds(row["prune_s"]),
        "prune_width": pruned,
        "recover": None if recovery is None else seconds(recovery),
        # A bar beyond the scale ends at its edge.
        "recover_width": round(min(100 * (recovery or 0.0) / longest, 100 - pruned), 1),
        "cut": _time(row) > longest,
        "tokens": _tokens(row),
        "rss": size(row["prune_peak_rss_bytes"]),
        "gpu": None if gpu is None else size(gpu),
        "total": seconds(row["total_s"]),
    }


def _time(row: Row) -> float:
    """Seconds of pruning and retraining."""
    return float(row["prune_s"] + (row["recover_s"] or 0.0))


def _tokens(row: Row) -> str:
    # Means over seeds need not be whole numbers.
    seen, trained = row["calibration_tokens"], row["recover_tokens"]
    text = "none" if not seen else f"{count(round(seen))} of calibration"
    return text if trained is None else f"{text}, {count(round(trained))} of training"
