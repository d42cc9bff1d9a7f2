"""A run folder from before the source tree moved (November 2026) works as it did then."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from prunebench.cli import prunebench
from prunebench.record.io import GenerationIO
from prunebench.record.record import Record

MADE = Path(__file__).parent / "before_the_move"


class ReportContent(HTMLParser):
    """A report without its prose and its pictures: embedded data, cells of tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.data, self.cells = "", []
        self.sections: set[str] = set()
        self._cell = self._data = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if tag == "section":
            self.sections.add(given["id"] or "")
        self._data = self._data or given.get("id") == "data"
        if tag in {"td", "th"}:  # a cell may end without an end tag
            self._cell = tag == "td"
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in {"td", "tr"}
        self._data = self._data and tag != "script"

    def handle_data(self, data: str) -> None:
        if self._data:
            self.data += data
        if self._cell:
            self.cells[-1] += data


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "runs" / "before-the-move"
    shutil.copytree(MADE / "run", folder)
    monkeypatch.chdir(tmp_path)
    # Reports of that time divided by each cell's own bandwidth instead of the device's best.
    for module in ("table", "report_input"):
        monkeypatch.setattr(f"prunebench_report.data.{module}.generation_floors", _own_floors)
    return folder


def _own_floors(records: Sequence[Record]) -> dict[str, list[GenerationIO]]:
    return {one.id: one.io.generation if one.io else [] for one in records}


def test_its_table_is_the_same(run):
    result = CliRunner().invoke(prunebench, ["export", str(run), "--format", "json"])
    assert result.exit_code == 0, result.output
    before = json.loads((MADE / "table.json").read_text())
    now = json.loads(result.stdout)
    assert [{key: row[key] for key in old} for row, old in zip(now, before, strict=True)] == before


def test_its_report_shows_the_same_apart_from_the_prose(run):
    result = CliRunner().invoke(prunebench, ["report", str(run)])
    assert result.exit_code == 0, result.output
    now = ReportContent((run / "report.html").read_text())
    before = ReportContent(gzip.decompress((MADE / "report.html.gz").read_bytes()).decode())
    assert before.sections <= now.sections
    now = ReportContent(_without((run / "report.html").read_text(), now.sections - before.sections))
    numbers, known = (
        [cell for cell in side.cells if any(map(str.isdigit, cell))] for side in (now, before)
    )
    # A cell may say more than it did, such as the time of dense in the same rounds.
    assert len(numbers) == len(known)
    assert [one for one, old in zip(numbers, known, strict=True) if not one.startswith(old)] == []
    assert _embedded(now.data).items() >= _embedded(before.data).items()


def _without(page: str, sections: set[str]) -> str:
    """The page without these; a section that came later is no difference."""
    for name in sections:
        page = re.sub(rf'<section id="{name}".*?</section>', "", page, flags=re.DOTALL)
    return page


def _embedded(text: str) -> dict[str, Any]:
    """The embedded data by name; a column that came later is no difference."""
    # It is compressed since the end of November 2026.
    plain = text if text.startswith("{") else gzip.decompress(base64.b64decode(text))
    data = json.loads(plain)
    columns, same, varying = data.pop("columns"), data.pop("same"), data.pop("varying")
    known = set(json.loads((MADE / "table.json").read_text())[0]) & set(columns)
    values = {
        f"{cell[0]} {name}": value
        for cell in data.pop("cells")
        for name, value in {**same, **dict(zip(varying, cell, strict=True))}.items()
        if name in known
    }
    return data | values


def test_its_finished_cells_are_not_run_again(run):
    result = CliRunner().invoke(
        prunebench, ["run", str(MADE / "run" / "suite.yaml"), "--no-report"]
    )
    assert result.exit_code == 0, result.output
    assert "10 cells, 10 finished" in result.output


def test_it_can_be_compared(run):
    result = CliRunner().invoke(prunebench, ["compare", str(run), str(run)])
    assert result.exit_code == 0, result.output
    assert "No significant change in 10 cells: 79 figures were judged." in result.output
