"""Records -> one table, a row a cell, every number beside dense. The report, the export and the terminal share it.

`plain` is the table without pandas, whose import costs more than all the rest of a report's numbers; `table` is the
same as a DataFrame.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prunebench_report.data import columns as fields
from prunebench_report.sections import metrics, published, speed, tasks
from prunebench_report.sections import time_breakdown as where
from prunebench_report.sections.devices import TIMED
from prunebench_report.text import clean, finite

if TYPE_CHECKING:
    import pandas as pd

    from prunebench.experiment.cell import Cell
    from prunebench.record.audit import Audit
    from prunebench.record.expectations import Expectation
    from prunebench.record.quality import Perplexity
    from prunebench.record.record import Record

Row = dict[str, Any]

_DTYPES = {"text": "string", "integer": "Int64", "real": "Float64", "truth": "boolean"}


def plain(records: Sequence[Record], gate: float, expect: Sequence[Expectation] = ()) -> list[Row]:
    """The table as rows of plain values: every column of `prunebench_report.data.columns`, None for what is missing.

    ``gate`` is the share of dense quality that a cell must keep, e.g. 0.95; ``expect`` are published figures. The
    dense of a cell is the ok record with method 'dense', the same model, device and protocols.
    """
    named = names([record.cell for record in records])
    dense: dict[str, Record] = {}
    for record in records:
        if record.status == "ok" and record.cell.method.name == "dense":
            dense.setdefault(_comparable(record.cell), record)
    judged = metrics.order(records)
    found = []
    for record in records:
        other = dense.get(_comparable(record.cell))
        row = _row(record, other, gate, named[record.id])
        found.append({**row, **_harmless(metrics.columns(record, other, judged))})
    for record, row in zip(records, found, strict=True):
        for index, one in enumerate(published.columns(expect, record)):
            row |= {fields.numbered(key, index): value for key, value in one.items()}
    columns = _columns(records, expect)
    return [{name: row.get(name) for name in columns} for row in found]


def table(
    records: Sequence[Record], gate: float, expect: Sequence[Expectation] = ()
) -> pd.DataFrame:
    """`plain` as a DataFrame with nullable types; what is missing is `pandas.NA`."""
    import pandas as pd

    rows = plain(records, gate, expect)
    return pd.DataFrame(
        {
            name: pd.array([row[name] for row in rows], dtype=_DTYPES[fields.kind_of(name)])  # type: ignore[call-overload]
            for name in _columns(records, expect)
        }
    )


def rows(frame: pd.DataFrame) -> list[Row]:
    """The rows of a `table`, or of a part of it, as plain values."""
    columns = {
        name: frame[name].astype(object).where(frame[name].notna(), None).tolist()
        for name in frame.columns
    }
    return [
        {name: values[index] for name, values in columns.items()} for index in range(len(frame))
    ]


def _columns(records: Sequence[Record], expect: Sequence[Expectation]) -> list[str]:
    perplexities = max((len(r.quality.perplexity) for r in records if r.quality), default=0)
    shapes = max((len(speed.stored(record)) for record in records), default=0)
    figures = max((sum(record.id in one.cells for one in expect) for record in records), default=0)
    scores = max((len(tasks.asked(record)) for record in records), default=0)
    judged = len(metrics.order(records))
    return fields.names(perplexities, shapes, published=figures, tasks=scores, metrics=judged)


def names(cells: Sequence[Cell], runs: Mapping[str, str] | None = None) -> dict[str, str]:
    """A name for each cell id: its label, with the model, the seed, the run and at last the id where labels repeat."""
    by_id = {cell.id: cell for cell in cells}  # an id is a hash: computed once
    result = {key: clean(cell.label) for key, cell in by_id.items()}
    if len({cell.model.name for cell in cells}) > 1:
        result = {key: f"{name} · {clean(by_id[key].model.name)}" for key, name in result.items()}
    by_run = {key: (runs or {}).get(key, "") for key in by_id}
    by_seed = {key: f"seed {cell.seed}" for key, cell in by_id.items()}
    for suffix in (by_run, by_seed, {key: key[:6] for key in by_id}):
        groups: dict[str, list[str]] = {}
        for key, name in result.items():
            groups.setdefault(name, []).append(key)
        for members in groups.values():
            if len({suffix[key] for key in members}) > 1:
                result |= {key: f"{result[key]} · {suffix[key]}" for key in members}
    return result


def _comparable(cell: Cell) -> str:
    """What two cells must share before their numbers stand side by side."""
    identity = cell.identity()
    kept = {
        key: identity[key]
        for key in ("model", "perplexity", "latency", "device", "threads", "protocol")
    }
    kept |= {key: identity.get(key) for key in ("tasks", "metrics")}
    return json.dumps(kept, sort_keys=True)


def _row(record: Record, dense: Record | None, gate: float, name: str) -> Row:
    cell = record.cell
    row: Row = {
        "cell": record.id,
        "name": name,
        "status": record.status,
        "model": cell.model.name,
        "model_dtype": cell.model.dtype,
        "model_sha256": cell.model.sha256 or cell.model.revision,
        "method": cell.method.name,
        "label": cell.label,
        "options": json.dumps(cell.method.options, sort_keys=True),
        "allocation": cell.allocation and cell.allocation.name,
        "allocation_options": cell.allocation
        and json.dumps(cell.allocation.options, sort_keys=True),
        "recovery": cell.recovery and cell.recovery.name,
        "recovery_options": cell.recovery and json.dumps(cell.recovery.options, sort_keys=True),
        "distribution": cell.method.distribution,
        "version": cell.method.version,
        "seed": cell.seed,
        "device": cell.device,
        "dense_cell": dense and dense.id,
        "started": record.started,
        "finished": record.finished,
        **_quality(record, dense, gate),
        **tasks.columns(record, dense, gate),
        **speed.columns(record, dense),
        **where.columns(record),
        **_size(record, dense),
        **_cost(record),
        **_devices(record, dense),
    }
    if error := record.error:
        row |= {"error_phase": error.phase, "error_type": error.type}
        row |= {"error_message": error.message[:2000], "error_hint": error.hint}
    return _harmless(row)


def _harmless(row: Row) -> Row:
    return {
        key: clean(value) if isinstance(value, str) else finite(value) for key, value in row.items()
    }


def _quality(record: Record, dense: Record | None, gate: float) -> Row:
    row: Row = {}
    reference = dense.quality.perplexity if dense and dense.quality else []
    recoveries: list[float | None] = []
    for index, one in enumerate(record.quality.perplexity if record.quality else []):
        same = next(
            (other for other in reference if other.tokens_sha256 == one.tokens_sha256), None
        )
        recovery = None
        if same and finite(one.perplexity) and finite(same.perplexity):
            recovery = 100 * same.perplexity / one.perplexity
        recoveries.append(recovery)
        low, high = _interval(one)
        values = {
            "perplexity": one.perplexity,
            "perplexity_low": low,
            "perplexity_high": high,
            "nll_nats": one.nll,
            "nll_stderr_nats": one.nll_stderr,
            "recovery_percent": recovery,
            "perplexity_protocol": protocol(one),
        }
        row |= {fields.numbered(key, index): value for key, value in values.items()}
    known = [recovery for recovery in recoveries if recovery is not None]
    if recoveries and len(known) == len(recoveries):
        row["gate_passed"] = min(known) >= 100 * gate
    return row


def _interval(one: Perplexity) -> tuple[float | None, float | None]:
    if (
        one.nll_stderr is None
        or not math.isfinite(one.nll)
        or one.nll + 1.96 * one.nll_stderr > 700
    ):
        return None, None
    return math.exp(one.nll - 1.96 * one.nll_stderr), math.exp(one.nll + 1.96 * one.nll_stderr)


def protocol(one: Perplexity) -> str:
    """Everything that names a perplexity, in one line."""
    tail = f"the last of {one.tail_tokens}, " if one.tail_tokens else ""
    return (
        f"{one.corpus} {one.split}, {one.windows} windows of {one.window} tokens, {tail}stride {one.stride}, "
        f"{one.tokens_scored} tokens scored, BOS {one.bos}, {one.protocol} protocol"
    )


def _size(record: Record, dense: Record | None) -> Row:
    row: Row = {}
    if memory := record.memory:
        row |= {"peak_rss_bytes": memory.peak_rss_bytes, "uss_bytes": memory.uss_bytes}
        if gpu := memory.gpu:
            row["peak_gpu_bytes"] = next(
                (
                    v
                    for v in (gpu.nvml_process_bytes, gpu.reserved_bytes, gpu.allocated_bytes)
                    if v is not None
                ),
                None,
            )
        alone = next(
            (one.gpu for one in memory.phases if one.phase == "generate" and one.gpu), None
        )
        row["generate_gpu_bytes"] = alone and alone.allocated_bytes
        row["peak_rss_ratio"] = _ratio(
            memory.peak_rss_bytes, dense.memory.peak_rss_bytes if dense and dense.memory else None
        )
    if audit := record.audit:
        other = dense.audit if dense else None
        row |= {
            "sparsity": audit.sparsity,
            "removed_share": audit.removed_share,
            "zeros": audit.zeros,
            "zeros_dense": audit.zeros_dense,
            "parameters": audit.parameters,
            "layers": len(audit.kept_layers),
            "layers_removed": len(audit.removed_layers),
            "memory_bytes": audit.memory_bytes,
            "disk_bytes": audit.disk_bytes,
            "parameters_ratio": _ratio(audit.parameters, audit.parameters_dense),
            "memory_ratio": _ratio(audit.memory_bytes, other.memory_bytes if other else None),
            "disk_ratio": _ratio(audit.disk_bytes, other.disk_bytes if other else None),
            "form": audit.form,
            "granularity": granularity(audit),
            "speedup_expected": audit.speedup_expected,
        }
    return row


def granularity(audit: Audit) -> str:
    """What was pruned, by what was counted: 'layers', 'blocks', 'width', 'n:m', 'unstructured', 'none'."""
    legal = any(one.groups and not one.violations for one in audit.patterns)
    parts = [
        ("layers", bool(audit.removed_layers)),
        ("blocks", bool(audit.removed_blocks)),
        ("width", bool(audit.widths) or audit.hidden != audit.hidden_dense),
        ("n:m" if legal else "unstructured", audit.zeros > audit.zeros_dense),
    ]
    return ", ".join(name for name, there in parts if there) or "none"


def _ratio(value: int | None, reference: int | None) -> float | None:
    return value / reference if value is not None and reference else None


def _cost(record: Record) -> Row:
    row: Row = {}
    if record.io:
        load = record.io.load
        row |= {"load_host_s": load.host_s, "load_device_s": load.device_s}
        row |= {"load_s": load.seconds, "load_bytes": load.bytes, "load_cache": load.cache}
    if cost := record.cost:
        row |= {
            "prune_s": cost.prune_s,
            "calibration_tokens": cost.calibration_tokens,
            "total_s": cost.total_s,
        }
        row |= {"prune_peak_gpu_bytes": cost.peak_gpu_bytes}
        row |= {
            "prune_peak_rss_bytes": cost.peak_rss_bytes,
            "calibration_sha256": cost.calibration_sha256,
        }
        row |= {"recover_s": cost.recover_s, "recover_tokens": cost.recover_tokens}
        row |= {"recover_sha256": cost.recover_sha256}
    return row


def _devices(record: Record, dense: Record | None) -> Row:
    row: Row = {}
    if record.speed and record.speed.dram:
        row["dram_utilisation"] = record.speed.dram.utilisation
    if energy := record.energy:
        row |= {
            "joules_per_token": energy.joules_per_token,
            "joules_per_prompt": energy.joules_per_prompt,
        }
        other = dense.energy if dense else None
        if (
            other
            and other.source == energy.source
            and other.joules_per_token
            and energy.joules_per_token
        ):
            row["joules_ratio"] = energy.joules_per_token / other.joules_per_token
        row |= {
            "idle_w": energy.idle_w,
            "energy_source": energy.source or f"not available: {energy.reason}",
        }
    if contention := record.contention:
        row["gpu_shared"] = contention.gpu and contention.gpu.foreign
        timed = [one.others_share + one.steal_share for one in contention.cpu if one.phase in TIMED]
        row["cpu_others_share"] = max(timed, default=None)
    return row


def by_model(table: Sequence[Row]) -> Mapping[str, list[Row]]:
    """Rows that may be compared: one group a model, in the order of the table."""
    groups: dict[str, list[Row]] = {}
    for row in table:
        groups.setdefault(row["model"], []).append(row)
    return groups
