"""Sections from plugins: their blocks, checked, as plain values and never as markup."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prunebench.plugin.api.report_section import (
    Block,
    Folded,
    Number,
    Paragraph,
    ReportData,
    Table,
    Texts,
    Value,
)
from prunebench_report.text import MISSING, clean, number, shorten

if TYPE_CHECKING:
    from prunebench.plugin.api.report_section import ReportSection
    from prunebench_report.data.report_input import ReportInput

# The most that one section may take, so that a plugin cannot make the file too large to open.
_MOST_BLOCKS = 100
_MOST_ROWS = 200
_MOST_COLUMNS = 30
_LONGEST_PARAGRAPH = 10_000
_LONGEST_VALUE = 300
_MOST_TEXTS = 6
_LONGEST_TEXT = 2_000


def section(given: ReportInput, plugins: Sequence[type[ReportSection]]) -> list[dict[str, Any]]:
    """Each plugin's section, or a note why it could not be made; empty ones are left out."""
    found = []
    for plugin in plugins:
        name, title = clean(str(plugin.name)), clean(str(getattr(plugin, "title", plugin.name)))
        try:
            # Copies, so that a plugin cannot change what other sections show.
            data = ReportData([dict(row) for row in given.table], list(given.records))
            blocks, problem = _blocks(plugin().build(data)), None
        # Whatever a plugin does wrong costs its own section and nothing else.
        except (Exception, SystemExit) as error:
            blocks, problem = [], shorten(clean(f"{type(error).__name__}: {error}"), _LONGEST_VALUE)
        if blocks or problem:
            found.append({"name": name, "title": title, "blocks": blocks, "problem": problem})
    return found


def _blocks(blocks: Sequence[Block]) -> list[dict[str, Any]]:
    return [_block(block) for block in list(blocks)[:_MOST_BLOCKS]]


def _block(block: Block) -> dict[str, Any]:
    if isinstance(block, Paragraph):
        return {"kind": "text", "text": shorten(clean(str(block.text)), _LONGEST_PARAGRAPH)}
    if isinstance(block, Number):
        return {
            "kind": "number",
            "name": _cell(block.name),
            "text": _cell(block.value),
            "unit": _cell(block.unit),
        }
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Texts):
        texts = [
            {"head": _cell(head), "text": shorten(clean(str(text)), _LONGEST_TEXT)}
            for head, text in list(block.texts)[:_MOST_TEXTS]
        ]
        return {"kind": "texts", "texts": texts}
    if isinstance(block, Folded):
        if any(isinstance(inner, Folded) for inner in block.blocks):
            raise TypeError("a Folded block is inside another one")
        return {"kind": "folded", "title": _cell(block.title), "blocks": _blocks(block.blocks)}
    raise TypeError(
        f"{type(block).__name__} is no block: Paragraph, Number, Table, Texts or Folded "
        "of prunebench"
    )


def _table(block: Table) -> dict[str, Any]:
    head = [_cell(one) for one in block.head][:_MOST_COLUMNS]
    lines = [[_cell(value) for value in row][: len(head)] for row in list(block.rows)[:_MOST_ROWS]]
    if any(len(line) != len(head) for line in lines):
        raise ValueError(f"a row of a table has fewer values than its {len(head)} columns")
    return {
        "kind": "table",
        "head": head,
        "rows": lines,
        "caption": _cell(block.caption),
        "left": len(block.rows) - len(lines),
    }


def _cell(value: Value) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return MISSING
    # bool is an int in Python, but True is not 1.
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number(value, 4) if isinstance(value, float) else f"{value:,}"
    return shorten(clean(str(value)), _LONGEST_VALUE)
