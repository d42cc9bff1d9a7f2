"""The head of the report: what ran when and where, under which protocols, and how it ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from prunebench_report.data.columns import Row
from prunebench_report.data.machines import machines
from prunebench_report.sections.provenance import tool_version

if TYPE_CHECKING:
    from prunebench.record.record import Record
    from prunebench_report.data.report_input import ReportInput

# The order in which the totals are listed
_STATUSES = ("ok", "failed", "timeout", "out-of-memory", "skipped", "damaged", "not run")


def section(given: ReportInput) -> dict[str, Any]:
    plan = given.plan
    return {
        "title": plan.title or plan.suite,
        "suite": plan.suite,
        "suites": given.suites,
        "running": given.running,
        "version": tool_version(given.records),
        "when": when(given.records),
        "runs": _runs(given),
        "machines": machines(given.records),
        "models": list(dict.fromkeys(cell.model.name for cell in plan.cells)),
        "protocols": _protocols(given.table),
        "totals": _totals(given.cells),
        "gate": _gate(given),
    }


def _runs(given: ReportInput) -> list[dict[str, Any]]:
    """Cells, time and machines of each run; empty if there is only one."""
    found = []
    for name in dict.fromkeys(given.runs.values()):
        records = [record for record in given.records if given.runs[record.id] == name]
        cells = sum(run == name for run in given.runs.values())
        found.append(
            {"name": name, "cells": cells, "when": when(records), "machines": machines(records)}
        )
    return found


def _gate(given: ReportInput) -> str:
    written = given.plan.generation_gate
    also = "" if written is None else f", and {100 * written:g} % in generation"
    return f"{100 * given.gate:g} %{also}"


def when(records: Sequence[Record]) -> str | None:
    """From the first start to the last end, in UTC; None if no record has a time."""
    stamps = [stamp for record in records for stamp in (record.started, record.finished)]
    times = [time for stamp in stamps if (time := _utc(stamp))]
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
    # Records are written in UTC; one without a time zone is taken to be.
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _totals(cells: Sequence[Row]) -> list[dict[str, Any]]:
    counts = Counter(row["status"] for row in cells)
    return [{"status": status, "count": counts[status]} for status in _STATUSES if counts[status]]


def _protocols(table: Sequence[Row]) -> list[str]:
    """The protocols behind the headline columns, each once."""
    keys = {"Perplexity": "perplexity_protocol", "Latency": "latency_protocol"}
    return [
        f"{name}: {text}"
        for name, key in keys.items()
        for text in dict.fromkeys(row[key] for row in table if row[key])
    ]
