"""The view-model of a report: plain dicts and lists, everything decided, nothing drawn but the figures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from prunebench.record.record import Record
from prunebench_report.data import columns as fields
from prunebench_report.data import detail, seeds
from prunebench_report.data import table as frames
from prunebench_report.sections import (
    devices,
    metrics,
    provenance,
    published,
    speed,
    tasks,
    timelines,
)
from prunebench_report.sections import plugin_sections as plugged
from prunebench_report.sections import pruning_cost as costs
from prunebench_report.sections import time_breakdown as where
from prunebench_report.sections.cards import brief, card, failure
from prunebench_report.sections.main_table import matrix
from prunebench_report.sections.quality_plots import figures
from prunebench_report.sections.verdict import verdict
from prunebench_report.text import clean

if TYPE_CHECKING:
    from prunebench.experiment.cell import Cell
    from prunebench.plugin.api.report_section import ReportSection
    from prunebench.store.plan_file import Plan
    from prunebench.store.run_folder import DamagedRecord
    from prunebench_report.data.load_runs import ReportInput

SCHEMA = 1
_ORDER = ("ok", "failed", "timeout", "out-of-memory", "skipped", "damaged", "not run")


def view(
    gathered: ReportInput, sections: Sequence[type[ReportSection]] = (), *, running: bool = False
) -> dict[str, Any]:
    """All that the template shows; ``sections`` are those of plugins, ``running`` is True while cells are still run."""
    plan, records, damaged = gathered.plan, gathered.records, gathered.damaged
    named = frames.names(plan.cells, gathered.runs)
    table = frames.plain(records, plan.gate, plan.expect)
    for row in table:
        row["name"] = named[row["cell"]]
    shared, own = provenance.split(records)
    by_id = {row["cell"]: row for row in table}
    every = _in_plan_order(plan.cells, by_id, damaged, named)
    rows = seeds.pooled([_with_run(row, gathered.runs) for row in every], plan.cells, plan.gate)
    results = [row for row in rows if row["status"] not in ("not run", "damaged")]
    one_by_one = {cell for row in rows for cell in row.get("members", ())}
    shown = {cell: row["cell"] for row in rows for cell in row.get("members", (row["cell"],))}
    picked = detail.chosen(rows) if len(table) > detail.ALL else rows
    inside = detail.ids(picked)
    detailed = [record for record in records if record.id in inside]
    failed = [record for record in records if record.status != "ok"]
    return {
        "title": plan.title or plan.suite,
        "suite": plan.suite,
        "suites": [one._asdict() for one in gathered.suites],
        "running": running,
        "version": provenance.tool_version(records),
        "when": when(records),
        "machines": provenance.machines(records),
        "models": list(dict.fromkeys(cell.model.name for cell in plan.cells)),
        "protocols": _protocols(table),
        "total": len(plan.cells),
        "totals": _totals(every),
        "warnings": warnings(gathered, running=running),
        "verdict": [
            {
                "key": statement.key,
                "question": statement.question,
                "figure": statement.figure,
                "spans": [{"text": span.text, "cell": span.cell} for span in statement.spans],
            }
            for statement in verdict(results, plan.gate)
        ],
        "figures": figures(results, plan.gate),
        "table": _linked(matrix(rows, plan.gate), {record.id for record in detailed}),
        "seed_table": _linked(
            matrix([row for row in every if row["cell"] in one_by_one], plan.gate),
            {record.id for record in detailed},
        )
        if one_by_one
        else None,
        "left_out": len(records) - len(detailed),
        "published": published.section(plan.expect, records, shown),
        "tasks": tasks.section(detailed, {row["cell"]: row["dense_cell"] for row in table}, named),
        "metrics": metrics.section(
            detailed, {row["cell"]: row["dense_cell"] for row in table}, named
        ),
        "where": where.section(detailed, named),
        "where_parts": list(where.NAMES.values()),
        "timelines": timelines.section(detailed, named),
        "costs": costs.section(picked),
        "sections": plugged.sections(sections, table, records) if sections else [],
        "failures": [failure(one, by_id[one.id]) for one in failed[: detail.FAILURES]],
        "more_failures": [brief(one, by_id[one.id]) for one in failed[detail.FAILURES :]],
        "damaged": [
            {"name": named[one.path.stem], "file": one.path.name, "reason": one.reason}
            for one in damaged
        ],
        "cards": [card(one, by_id[one.id], own[one.id]) for one in detailed],
        "provenance": list(shared.items()),
        "data": data(plan, table),
        "gate": f"{100 * plan.gate:g} %",
    }


def _with_run(row: frames.Row, runs: Mapping[str, str]) -> frames.Row:
    return {**row, "run": runs[row["cell"]]} if row["cell"] in runs else row


def _linked(grid: dict[str, Any], cards: set[str]) -> dict[str, Any]:
    """The table with what each row's name leads to: its card, or the first of its seeds."""
    for row in grid["rows"]:
        row["link"] = (
            f"#row-{row['members'][0]}"
            if row["members"]
            else f"#cell-{row['id']}"
            if row["id"] in cards
            else None
        )
    return grid


def data(plan: Plan, table: Sequence[frames.Row]) -> str:
    """The embedded JSON: what `prunebench export --format json` gives, with the run's name. Safe inside <script>.

    What all cells share stands once in `same`; `cells` has a list a cell, in the order of `varying`.
    """
    columns = list(table[0]) if table else fields.names(1, 1)
    values = [[row[column] for column in columns] for row in table]
    same = [
        len({(type(line[index]), line[index]) for line in values}) == 1
        for index in range(len(columns))
    ]
    content = {
        "schema": SCHEMA,
        "suite": plan.suite,
        "title": plan.title,
        "suite_sha256": plan.suite_sha256,
        "gate": plan.gate,
        "columns": columns,
        "same": {
            column: values[0][index]
            for index, column in enumerate(columns)
            if values and same[index]
        },
        "varying": [column for index, column in enumerate(columns) if not (values and same[index])],
        "cells": [
            [value for index, value in enumerate(line) if not same[index]] for line in values
        ],
    }
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def when(records: Sequence[Record]) -> str | None:
    """From the first start to the last end, in UTC; None without a record."""
    times = [
        time
        for record in records
        for stamp in (record.started, record.finished)
        if (time := _utc(stamp))
    ]
    if not times:
        return None
    first, last = min(times), max(times)
    same_day = first.date() == last.date()
    return f"{first:%Y-%m-%d %H:%M} to {last:{'%H:%M' if same_day else '%Y-%m-%d %H:%M'}} UTC"


def _utc(stamp: str) -> datetime | None:
    try:
        time = datetime.fromisoformat(stamp)
    except ValueError:
        return None
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


DRIFT = 0.1
"""A dense model that is slower by more than this in another cell makes milliseconds of different rows incomparable."""


def warnings(gathered: ReportInput, *, running: bool = False) -> list[str]:
    """Why some of the numbers cannot be compared, one sentence each."""
    plan, records, damaged = gathered.plan, gathered.records, gathered.damaged
    found = []
    missing = len(plan.cells) - len(records) - len(damaged)
    if missing and not running:
        found.append(
            f"Not run: {missing} of {len(plan.cells)} cells. The verdict is about the others."
        )
    if len(gathered.gates) > 1:
        found.append("The runs have different quality gates; that of the first is used.")
    found += [f"The record {one.path.name} cannot be used: {clean(one.reason)}." for one in damaged]
    done = [record for record in records if record.status == "ok"]
    if done and not any(record.cell.method.name == "dense" for record in done):
        found.append("No dense cell finished: recovery and speed-up cannot be given.")
    apart = [
        record
        for record in done
        if record.cell.method.name != "dense"
        and any(
            one.inter_token_speedup is None and not one.unpaired for one in speed.stored(record)
        )
    ]
    if apart:
        found.append(
            f"{len(apart)} cells were not timed in rounds interleaved with dense: "
            "their speed-up compares two processes and has no interval."
        )
    found += speed.warnings(done)
    if (drift := _drift(done)) > DRIFT:
        found.append(
            f"The machine's own speed drifted: the dense model took up to {100 * drift:.0f} % longer per token in some cells than "
            "in others. Compare speed-ups, which are paired, not milliseconds of different rows."
        )
    machines = provenance.machines(records)
    if governor := provenance.slow_governor(done):
        found.append(
            f"The CPU governor is '{clean(governor)}', so the clock may change between rounds."
        )
    if len(machines) > 1:
        found.append(
            f"Cells ran on {len(machines)} different machines: times must not be compared between them."
        )
    return found + devices.warnings(records, frames.names(plan.cells))


def _drift(records: Sequence[Record]) -> float:
    """How much slower the dense model was in its slowest cell than in its quickest, the worst of all models and shapes."""
    medians: dict[tuple[object, ...], list[float]] = {}
    for record in records:
        for one in speed.stored(record):
            dense = (
                one.inter_token_s if record.cell.method.name == "dense" else one.dense_inter_token_s
            )
            if dense is not None and dense.median > 0:
                shape = (
                    record.cell.model.name,
                    one.prompt,
                    one.new_tokens,
                    one.batch_size,
                    one.execution,
                )
                medians.setdefault(shape, []).append(dense.median)
    return max((max(several) / min(several) - 1 for several in medians.values()), default=0.0)


def _in_plan_order(
    cells: Sequence[Cell],
    rows: dict[str, frames.Row],
    damaged: Sequence[DamagedRecord],
    named: dict[str, str],
) -> list[frames.Row]:
    """A row for every cell of the plan, dense first within its model's cells."""
    broken = {one.path.stem for one in damaged}
    every = [
        rows.get(cell.id)
        or {
            "cell": cell.id,
            "name": named[cell.id],
            "model": cell.model.name,
            "method": cell.method.name,
            "status": "damaged" if cell.id in broken else "not run",
        }
        for cell in cells
    ]
    models = list(dict.fromkeys(row["model"] for row in every))
    return sorted(every, key=lambda row: (models.index(row["model"]), row["method"] != "dense"))


def _totals(every: Sequence[frames.Row]) -> list[dict[str, Any]]:
    counts = Counter(row["status"] for row in every)
    return [{"status": status, "count": counts[status]} for status in _ORDER if counts[status]]


def _protocols(table: Sequence[frames.Row]) -> list[str]:
    """The protocols behind the headline columns, each once."""
    keys = {"Perplexity": "perplexity_protocol", "Latency": "latency_protocol"}
    return [
        f"{name}: {text}"
        for name, key in keys.items()
        for text in dict.fromkeys(row[key] for row in table if row.get(key))
    ]
