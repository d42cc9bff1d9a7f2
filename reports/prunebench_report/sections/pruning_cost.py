"""What pruning itself costs: time, retraining, tokens seen, peak memory; for the template to draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prunebench_report.data.table import Row
from prunebench_report.text import count, seconds, size


def section(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A line for each pruned cell with a result; empty where no cost was kept."""
    known = [
        row
        for row in rows
        if row["status"] == "ok" and row["method"] != "dense" and row.get("prune_s") is not None
    ]
    longest = (
        max((row["prune_s"] + (row.get("recover_s") or 0.0) for row in known), default=0.0) or 1.0
    )
    return [
        {
            "id": row["cell"],
            "name": row["name"],
            "prune": seconds(row["prune_s"]),
            "prune_width": round(100 * row["prune_s"] / longest, 1),
            "recover": seconds(row["recover_s"]) if row.get("recover_s") is not None else None,
            "recover_width": round(100 * (row.get("recover_s") or 0.0) / longest, 1),
            "tokens": _tokens(row),
            "rss": size(row.get("prune_peak_rss_bytes")),
            "gpu": size(row["prune_peak_gpu_bytes"])
            if row.get("prune_peak_gpu_bytes") is not None
            else None,
            "total": seconds(row.get("total_s")),
        }
        for row in known
    ]


def _tokens(row: Row) -> str:
    seen = row.get("calibration_tokens")
    text = "none" if not seen else f"{count(round(seen))} of calibration"
    trained = row.get("recover_tokens")
    return text if trained is None else f"{text}, {count(round(trained))} of training"
