"""Sections from plugins: their blocks, checked, as plain values for the template. Nothing that they give is markup."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prunebench.plugin.api.report_section import Block, Number, Paragraph, ReportData, Table, Value
from prunebench_report.text import MISSING, clean, number, shorten

if TYPE_CHECKING:
    from prunebench.plugin.api.report_section import ReportSection
    from prunebench.record.record import Record
    from prunebench_report.data.table import Row

_BLOCKS, _ROWS, _COLUMNS, _TEXT, _VALUE = 50, 200, 30, 10_000, 300
"""The most that one section may take."""


def sections(
    plugins: Sequence[type[ReportSection]], rows: Sequence[Row], records: Sequence[Record]
) -> list[dict[str, Any]]:
    """Each plugin's section, or a note saying why there is none; those without blocks are left out."""
    found = []
    for plugin in plugins:
        name, title = clean(str(plugin.name)), clean(str(getattr(plugin, "title", plugin.name)))
        try:
            data = ReportData([dict(row) for row in rows], list(records))
            blocks = [_block(block) for block in list(plugin().build(data))[:_BLOCKS]]
            problem = None
        except (Exception, SystemExit) as error:
            blocks, problem = [], shorten(clean(f"{type(error).__name__}: {error}"), _VALUE)
        if blocks or problem:
            found.append({"name": name, "title": title, "blocks": blocks, "problem": problem})
    return found


def _block(block: Block) -> dict[str, Any]:
    if isinstance(block, Paragraph):
        return {"kind": "text", "text": shorten(clean(str(block.text)), _TEXT)}
    if isinstance(block, Number):
        return {
            "kind": "number",
            "name": _cell(block.name),
            "text": _cell(block.value),
            "unit": _cell(block.unit),
        }
    if isinstance(block, Table):
        head = [_cell(one) for one in block.head][:_COLUMNS]
        lines = [[_cell(value) for value in row][: len(head)] for row in list(block.rows)[:_ROWS]]
        if any(len(line) != len(head) for line in lines):
            raise ValueError(f"a row of a table has fewer values than its {len(head)} columns")
        left = len(block.rows) - len(lines)
        return {
            "kind": "table",
            "head": head,
            "rows": lines,
            "caption": _cell(block.caption),
            "left": max(0, left),
        }
    raise TypeError(f"{type(block).__name__} is no block: Paragraph, Number or Table of prunebench")


def _cell(value: Value) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return MISSING
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number(value, 4) if isinstance(value, float) else f"{value:,}"
    return shorten(clean(str(value)), _VALUE)
