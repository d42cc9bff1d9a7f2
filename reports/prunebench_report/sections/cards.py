"""One card for each cell: everything that its record holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prunebench_report.data.columns import Row, numbered
from prunebench_report.data.gate import (
    PERPLEXITY_RECOVERY,
    interval_of,
    judged_by_tasks,
    quality,
    quality_key,
)
from prunebench_report.data.quality import perplexities, protocol
from prunebench_report.figures.heatmap import heatmap
from prunebench_report.figures.sparklines import io_floor_bar, phase_bars
from prunebench_report.sections import devices, metrics, runtimes, speed, tasks, timelines
from prunebench_report.sections.experiment import audit_facts, experiment_facts
from prunebench_report.sections.failures import command, explained_failures
from prunebench_report.sections.notes import notes
from prunebench_report.sections.provenance import in_words, split_facts
from prunebench_report.text import MISSING, number, size, times

if TYPE_CHECKING:
    from prunebench.record.io import GenerationIO
    from prunebench.record.quality import Perplexity
    from prunebench.record.record import Record
    from prunebench_report.data.report_input import ReportInput


def section(given: ReportInput) -> list[dict[str, Any]]:
    """A card for each cell that is shown in detail."""
    _, own = split_facts(given.records)
    explained = {one.id for one in explained_failures(given)}
    return [
        {
            **_card(one, given.row_by_id[one.id], own[one.id], given.floors[one.id]),
            # A failure has its own place, with the error, the hint, the log and the command.
            "failed": one.id in explained,
        }
        for one in given.detailed
    ]


def _card(
    record: Record, row: Row, own_facts: Mapping[str, str], floors: Sequence[GenerationIO]
) -> dict[str, Any]:
    """``own_facts`` are the facts of the cell's provenance that not all cells share."""
    said = notes(record)
    return {
        "id": record.id,
        "name": row["name"],
        "status": record.status,
        "summary": _summary(row),
        "method": experiment_facts(record),
        "audit": audit_facts(record, record.audit) if record.audit else [],
        "heatmap": heatmap(record.audit) if record.audit else None,
        "quality": [_perplexity(row, index, one) for index, one in enumerate(perplexities(record))],
        "tasks": tasks.facts(record),
        "metrics": metrics.facts(record),
        "runtimes": runtimes.facts(record),
        "speed": speed.latencies(record),
        "memory": devices.memory(record),
        "timeline": timelines.of_card(record),
        "load": devices.loading(record),
        "energy": devices.energy(record),
        "floors": [io_floor_bar(one) for one in floors],
        "dram": devices.dram_traffic(record),
        "phases": phase_bars(record.cost.phases) if record.cost else [],
        "notes": said.facts,
        "note_plots": said.figures,
        # The command has a place of its own at the end of the card.
        "provenance": in_words({key: one for key, one in own_facts.items() if key != "command"}),
        "command": command(record),
    }


def _summary(row: Row) -> str:
    """The line beside the name while the card is closed."""
    parts = []
    if (recovery := quality(row)) is not None:
        over = " over tasks" if judged_by_tasks(row) else ""
        found = interval_of(row, quality_key(row))
        between = f" ({number(found[0])} to {number(found[1])})" if found else ""
        parts.append(f"recovery {number(recovery)} %{between}{over}")
    if row["inter_token_speedup"] is not None:
        parts.append(f"{times(row['inter_token_speedup'])} per token")
    if row["disk_bytes"] is not None:
        parts.append(f"{size(row['disk_bytes'])} on disk")
    return ", ".join(parts)


def _perplexity(row: Row, index: int, one: Perplexity) -> dict[str, str]:
    keys = ("perplexity", "perplexity_low", "perplexity_high", "recovery_percent")
    value, low, high, recovery = (row[numbered(key, index)] for key in keys)
    known = low is not None and high is not None
    kept = "" if recovery is None else f"{number(recovery)} %"
    if kept and (found := interval_of(row, numbered(PERPLEXITY_RECOVERY, index))):
        kept += f" (95 % interval, paired by window: {number(found[0])} to {number(found[1])})"
    return {
        "value": number(value, 4),
        "interval": f"{number(low, 4)} to {number(high, 4)}" if known else MISSING,
        "recovery": kept or MISSING,
        "protocol": protocol(one),
        "tokens": one.tokens_sha256,
    }
