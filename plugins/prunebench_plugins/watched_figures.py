"""What the watchers of runs send of a cell: its figures and its settings, as plain values."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunebench import Cell, Record

VARIABLE = "PRUNEBENCH_WATCH"
"""Names the watchers that are wanted, separated by commas; `prunebench run --watch` sets it."""
PROJECT = "prunebench"
"""Where runs go if the service's own variable names no project or experiment."""


def is_wanted(name: str) -> bool:
    """Whether the user asked for this watcher: being installed is no consent to send anything."""
    return name in {one.strip() for one in os.environ.get(VARIABLE, "").split(",")}


def run_name(cell: Cell) -> str:
    """What the service calls the cell."""
    return f"{cell.model.name} {cell.label}" + (f" seed {cell.seed}" if cell.seed else "")


def failure(record: Record) -> str | None:
    """In which phase a cell failed, and why; None if it did not."""
    error = record.error
    return None if error is None else f"{error.phase}: {error.message}"


def figures(record: Record) -> dict[str, float]:
    """The figures of a record by a path-like name, for example `perplexity/wikitext2`.

    Seconds, bytes and shares, as in the record. What is missing or not finite is left out.
    """
    found: dict[str, Any] = {}
    for part in (_quality(record), _speed(record), _size(record), _cost(record)):
        for name, value in part.items():
            found.setdefault(name, value)
    return {
        name: float(value)
        for name, value in found.items()
        if value is not None and math.isfinite(value)
    }


def settings(cell: Cell) -> dict[str, str | int | float | bool]:
    """What identifies the cell, flat: `method`, `method.sparsity`, `calibration.corpus` ..."""
    identity = cell.identity()
    flat = _flat(identity) | {"id": cell.id, "label": cell.label, "model": cell.model.name}
    return flat | {"method": cell.method.name} | _flat(cell.method.options, "method")


def _flat(value: Any, prefix: str = "") -> dict[str, str | int | float | bool]:
    if isinstance(value, Mapping):
        parts = {f"{prefix}.{key}" if prefix else str(key): inner for key, inner in value.items()}
        return {
            name: leaf for key, inner in parts.items() for name, leaf in _flat(inner, key).items()
        }
    if value is None:
        return {}
    return {prefix: value if isinstance(value, str | int | float | bool) else str(value)}


def _quality(record: Record) -> dict[str, Any]:
    quality = record.quality
    if quality is None:
        return {}
    found: dict[str, Any] = {
        f"perplexity/{one.corpus}": one.perplexity for one in quality.perplexity
    }
    for task in quality.tasks:
        if task.asked:
            found[f"task/{task.task}/{task.headline}"] = task.value
            found[f"task/{task.task}/stderr"] = task.stderr
    for metric in quality.metrics:
        for figure in metric.figures:
            found[f"metric/{figure.name}"] = figure.value
    return found


def _speed(record: Record) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for one in record.speed.latency if record.speed else ():
        kernels = (
            "" if one.weights == "as stored" else f"_{one.weights.replace(':', '').split()[0]}"
        )
        shape = f"speed/prompt{one.prompt}_batch{one.batch_size}{kernels}"
        ratio = one.inter_token_speedup
        found |= {
            f"{shape}/ttft_s": one.ttft_s and one.ttft_s.median,
            f"{shape}/inter_token_s": one.inter_token_s and one.inter_token_s.median,
            f"{shape}/tokens_per_s": one.tokens_per_s,
            f"{shape}/speedup": ratio and ratio.estimate,
            f"{shape}/speedup_low": ratio and ratio.low,
            f"{shape}/speedup_high": ratio and ratio.high,
        }
    for runtime in record.runtimes:
        for timed in () if runtime.reason else runtime.latency:
            name = f"runtime/{runtime.runtime.replace(' ', '_')}_prompt{timed.prompt}"
            found |= {
                f"{name}/token_s": timed.token_s and timed.token_s.median,
                f"{name}/speedup": timed.token_speedup and timed.token_speedup.estimate,
            }
    return found


def _size(record: Record) -> dict[str, Any]:
    audit = record.audit
    if audit is None:
        return {}
    keys = ("parameters", "removed_share", "sparsity", "memory_bytes", "disk_bytes")
    return {f"size/{key}": getattr(audit, key) for key in keys}


def _cost(record: Record) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if record.cost is not None:
        found |= {"cost/prune_s": record.cost.prune_s, "cost/total_s": record.cost.total_s}
    if record.memory is not None:
        found["cost/peak_rss_bytes"] = record.memory.peak_rss_bytes
    return found
