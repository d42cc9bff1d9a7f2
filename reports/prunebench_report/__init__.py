"""From the records of a run to one HTML file, and to the table that other tools read.

Importing this package is cheap: pandas and jinja2 are imported when something is
rendered. Every function that takes a folder raises PrunebenchError if the folder is not a run.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd

    from prunebench.plugin.api.report_section import ReportSection
    from prunebench.store.run_folder import RunStore
    from prunebench_report.data.report_input import ReportInput
    from prunebench_report.output.terminal_summary import Summary

__all__ = [
    "compare",
    "export",
    "import_libraries",
    "load",
    "load_table",
    "main_table",
    "render",
    "summary",
    "write_page",
    "write_report",
]


def write_report(
    folder: Path,
    *more: Path,
    out: Path | None = None,
    only: Sequence[str] = (),
    sections: Sequence[type[ReportSection]] = (),
    running: bool = False,
) -> Path:
    """Write the report of a run, or of several together, and return its path.

    The report goes to ``out``, by default `report.html` in the first folder. ``only`` keeps the
    cells that match one of these shell patterns, ``sections`` are those of plugins, and ``running``
    says that cells are still being run.
    """
    from prunebench.model.files import check_file_target
    from prunebench.store.run_folder import RunStore

    path = out or RunStore.open(folder).report_path
    check_file_target(path)
    write_page(load(folder, *more, only=only, running=running), path, sections)
    return path


def write_page(
    given: ReportInput, path: Path, sections: Sequence[type[ReportSection]] = ()
) -> None:
    """Write the report of what was loaded to ``path``."""
    from prunebench.store.atomic import write_atomically

    write_atomically(path, _page(given, sections))


def render(
    *stores: RunStore,
    only: Sequence[str] = (),
    sections: Sequence[type[ReportSection]] = (),
    running: bool = False,
) -> str:
    """The report as an HTML document, with arguments as in `write_report`.

    The same stores give the same text.
    """
    from prunebench_report.data.load_runs import load_runs

    return _page(load_runs(stores, only, running=running), sections)


def _page(given: ReportInput, sections: Sequence[type[ReportSection]]) -> str:
    from prunebench.isolation.garbage import no_collection
    from prunebench_report.output.html import report_document
    from prunebench_report.output.view import view

    with no_collection():
        return report_document(view(given, sections))


def load(*folders: Path, only: Sequence[str] = (), running: bool = False) -> ReportInput:
    """Read the records of a run, or of several together, for a report, a table and a summary.

    ``only`` and ``running`` are as in `write_report`.
    """
    from prunebench.store.run_folder import RunStore
    from prunebench_report.data.load_runs import load_runs

    # Opening checks every folder before the first record is read.
    return load_runs([RunStore.open(folder) for folder in folders], only, running=running)


def load_table(folder: Path) -> pd.DataFrame:
    """The table of a run: one row per cell that has a record, with the columns of `export`."""
    from prunebench_report.data.table import data_frame

    return data_frame(load(folder).table)


def main_table(given: ReportInput, form: Literal["markdown", "latex", "model-card"]) -> str:
    """The main table of what was loaded, for a paper or for a model card."""
    from prunebench_report.output.model_card import model_card
    from prunebench_report.output.paper_tables import paper_table

    return model_card(given) if form == "model-card" else paper_table(given, form)


def summary(given: ReportInput) -> Summary:
    """The verdict, a compact table and the warnings of what was loaded, as text."""
    from prunebench_report.output.terminal_summary import terminal_summary

    return terminal_summary(given)


def compare(
    a: Path, b: Path, html: Path | None = None, limits: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """What run ``b`` changed against run ``a``, cell by cell; also written to ``html`` if given.

    With ``limits``, the shares that may be lost of 'quality', 'speed', 'memory' or 'disk',
    'losses' has what was lost, see `prunebench_report.data.losses.Loss`.
    """
    from prunebench.model.files import check_file_target
    from prunebench.store.atomic import write_atomically
    from prunebench_report.output.html import comparison_document
    from prunebench_report.sections import limits as checked_limits
    from prunebench_report.sections.comparison import before_and_after, comparison

    if html is not None:
        check_file_target(html, option="--html")
    before, after = load(a), load(b)
    found = comparison(before, after) | {"a": str(a), "b": str(b)}
    if limits:
        found["losses"] = checked_limits.section(before, after, limits)
    if html is not None:
        figures = before_and_after(before, after)
        write_atomically(html, comparison_document(found | {"figures": figures}))
    return found


def export(
    folder: Path,
    format: Literal["json", "csv", "parquet", "sqlite"],  # noqa: A002 - the option's name
    out: Path | None = None,
) -> str | None:
    """Write the table of a run to ``out``; without ``out``, return it as text (json and csv only).

    Raises PrunebenchError also for an unknown format, for parquet or sqlite without ``out``, and if
    the file cannot be written.
    """
    from prunebench_report.output import exports

    # A mistake in the request should not wait until a large run has been read.
    exports.check_request(format, out)
    return exports.export(load(folder), format, out)


def import_libraries() -> None:
    """Import what rendering needs, for callers with time to spare before there is a result."""
    for name in (
        "jinja2",
        "prunebench_report.output.view",
    ):
        importlib.import_module(name)
