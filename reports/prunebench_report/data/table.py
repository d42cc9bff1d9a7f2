"""From records to the table: one row for each cell, every number beside dense.

The report, the exports and the terminal share it. Rows are plain dicts: importing pandas takes
longer than everything else here, so only `data_frame` does it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prunebench_report.data.claims import bound_columns
from prunebench_report.data.columns import Row, column_names, kind_of
from prunebench_report.data.floors import generation_floors
from prunebench_report.data.gate import gate_columns
from prunebench_report.data.generation import generation_columns
from prunebench_report.data.metrics import FigureKey, figure_keys, metric_columns
from prunebench_report.data.names import unique_names
from prunebench_report.data.published import published_columns
from prunebench_report.data.quality import perplexities, perplexity_columns
from prunebench_report.data.resources import (
    breakdown_columns,
    cost_columns,
    device_columns,
    memory_columns,
    size_columns,
)
from prunebench_report.data.runtimes import runtime_columns, runtime_keys
from prunebench_report.data.speed import speed_columns, stored_latencies
from prunebench_report.data.tasks import suite_tasks, task_columns
from prunebench_report.text import clean, finite

if TYPE_CHECKING:
    import pandas as pd

    from prunebench.experiment.cell import Cell
    from prunebench.record.expectations import Expectation
    from prunebench.record.io import GenerationIO
    from prunebench.record.record import Record

_MOST_MESSAGE = 2000
_DTYPES = {"text": "string", "integer": "Int64", "real": "Float64", "truth": "boolean"}


def build_table(
    records: Sequence[Record],
    gate: float,
    expect: Sequence[Expectation] = (),
    names: Mapping[str, str] | None = None,
    generation_gate: float | None = None,
    floors: Mapping[str, list[GenerationIO]] | None = None,
) -> list[Row]:
    """One row for each record with every column; None for what is missing.

    ``gate`` is the share of dense quality that a cell must keep, e.g. 0.95, and ``generation_gate``
    that of what it writes; ``expect`` are published figures; ``names`` has the name of each cell
    id, ``floors`` its I/O floors, both by default those among these records. A cell is compared
    with the ok record of method 'dense' that has the same model, device and protocols.
    """
    named = names or unique_names([record.cell for record in records])
    dense: dict[str, Record] = {}
    for record in records:
        if record.status == "ok" and record.cell.method.name == "dense":
            dense.setdefault(_comparable(record.cell), record)
    keys, runtimes = figure_keys(records), runtime_keys(records)
    columns = _column_names(records, expect)
    bounds = bound_columns(records)
    floors = generation_floors(records) if floors is None else floors
    rows = []
    for record in records:
        reference = dense.get(_comparable(record.cell))
        row = _row(record, reference, keys, floors[record.id])
        row |= runtime_columns(record, runtimes)
        row["name"] = named[record.id]
        row |= bounds[record.id]
        row |= gate_columns(row, gate, generation_gate)
        row |= published_columns(record, expect)
        # In the order of the columns, and with None for those that other records need.
        rows.append({name: row.get(name) for name in columns})
    return rows


def data_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """The rows of `build_table` as a DataFrame with nullable types."""
    import pandas as pd

    arrays = {}
    for name in list(rows[0]) if rows else column_names(0, 0):
        # Nullable types: None becomes pandas.NA, and integers with gaps stay integers.
        dtype: Any = _DTYPES[kind_of(name)]
        arrays[name] = pd.array([row[name] for row in rows], dtype=dtype)
    return pd.DataFrame(arrays)


def _column_names(records: Sequence[Record], expect: Sequence[Expectation]) -> list[str]:
    """Every column that one of the records needs: all rows have the same ones."""
    return column_names(
        perplexities=max((len(perplexities(record)) for record in records), default=0),
        shapes=max((len(stored_latencies(record)) for record in records), default=0),
        published=max((sum(r.id in one.cells for one in expect) for r in records), default=0),
        tasks=max((len(suite_tasks(record)) for record in records), default=0),
        metrics=len(figure_keys(records)),
        runtimes=len(runtime_keys(records)),
    )


def _comparable(cell: Cell) -> str:
    """What two cells must share before their numbers may be compared."""
    identity = cell.identity()
    kept = {
        key: identity[key]
        for key in ("model", "perplexity", "latency", "device", "threads", "protocol")
    }
    # Cells planned before these keys existed have no such entry.
    kept |= {key: identity.get(key) for key in ("tasks", "metrics", "runtimes")}
    return json.dumps(kept, sort_keys=True)


def _row(
    record: Record,
    dense: Record | None,
    keys: Sequence[FigureKey],
    floors: Sequence[GenerationIO],
) -> Row:
    row = {
        **_identity(record),
        "dense_cell": dense and dense.id,
        **perplexity_columns(record, dense),
        **task_columns(record, dense),
        **speed_columns(record, dense, floors),
        **breakdown_columns(record),
        **size_columns(record, dense),
        **memory_columns(record, dense),
        **cost_columns(record),
        **device_columns(record, dense),
        **_outcome(record),
        **metric_columns(record, dense, keys),
        **generation_columns(record, dense),
    }
    # What plugins and models call themselves is text from outside; NaN is not JSON.
    return {
        key: clean(value) if isinstance(value, str) else finite(value) for key, value in row.items()
    }


def _identity(record: Record) -> Row:
    cell = record.cell
    allocation, recovery = cell.allocation, cell.recovery
    return {
        "cell": record.id,
        "status": record.status,
        "model": cell.model.name,
        "model_dtype": cell.model.dtype,
        "model_sha256": cell.model.sha256 or cell.model.revision,
        "method": cell.method.name,
        "label": cell.label,
        "options": json.dumps(cell.method.options, sort_keys=True),
        "allocation": allocation and allocation.name,
        "allocation_options": allocation and json.dumps(allocation.options, sort_keys=True),
        "recovery": recovery and recovery.name,
        "recovery_options": recovery and json.dumps(recovery.options, sort_keys=True),
        "distribution": cell.method.distribution,
        "version": cell.method.version,
        "seed": cell.seed,
        "device": cell.device,
    }


def _outcome(record: Record) -> Row:
    row: Row = {"started": record.started, "finished": record.finished}
    if error := record.error:
        row |= {
            "error_phase": error.phase,
            "error_type": error.type,
            "error_message": error.message[:_MOST_MESSAGE],
            "error_hint": error.hint,
        }
    return row
