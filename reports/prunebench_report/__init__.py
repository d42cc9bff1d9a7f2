"""From the records of a run to one HTML file, and to the one table that other tools read.

Importing this package is cheap: pandas, matplotlib and jinja2 are imported when something is rendered.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from prunebench.plugin.api.report_section import ReportSection
    from prunebench.store.run_folder import RunStore
    from prunebench_report.output.terminal_summary import Summary

__all__ = [
    "compare",
    "export",
    "import_libraries",
    "main_table",
    "render",
    "summary",
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
    """Render the report of a run, or of several as one, into ``out`` (`report.html` in the run folder) and return it.

    ``only`` keeps cells by shell patterns, ``sections`` are those of plugins, ``running`` says that cells are still to
    come. Raises PrunebenchError where a folder is no run.
    """
    from prunebench.store.atomic import write_atomically
    from prunebench.store.run_folder import RunStore

    stores = [RunStore.open(one) for one in (folder, *more)]
    path = out or stores[0].report_path
    write_atomically(path, render(*stores, only=only, sections=sections, running=running))
    return path


def render(
    *stores: RunStore,
    only: Sequence[str] = (),
    sections: Sequence[type[ReportSection]] = (),
    running: bool = False,
) -> str:
    """The report of a run, or of several as one, as an HTML document; the same stores give the same text."""
    from prunebench_report.data.load_runs import gather
    from prunebench_report.output.html import document
    from prunebench_report.output.view import view

    return document(view(gather(stores, only), sections, running=running))


def main_table(
    folders: Sequence[Path], form: Literal["markdown", "latex"], *, only: Sequence[str] = ()
) -> str:
    """The main table of a run, or of several, for a paper. Raises PrunebenchError where a folder is no run."""
    from prunebench.store.run_folder import RunStore
    from prunebench_report.data.load_runs import gather
    from prunebench_report.output import paper_tables as papers

    return papers.main_table(gather([RunStore.open(one) for one in folders], only), form)


def summary(folder: Path) -> Summary:
    """The verdict and a compact table of a run as text. Raises PrunebenchError where the folder is no run."""
    from prunebench.store.run_folder import RunStore
    from prunebench_report.data.load_runs import gather
    from prunebench_report.output import terminal_summary as digest

    return digest.summary(gather([RunStore.open(folder)]))


def compare(a: Path, b: Path, html: Path | None = None) -> dict[str, Any]:
    """What run ``b`` changed against ``a``, cell by cell, written to ``html`` too where that is given.

    Raises PrunebenchError where a folder is no run.
    """
    from prunebench.store.atomic import write_atomically
    from prunebench.store.run_folder import RunStore
    from prunebench_report.data.load_runs import gather
    from prunebench_report.output.html import comparison_document
    from prunebench_report.sections.comparison import comparison

    found = comparison(*(gather([RunStore.open(folder)]) for folder in (a, b)))
    found |= {"a": str(a), "b": str(b)}
    if html is not None:
        write_atomically(html, comparison_document(found))
    return found


def import_libraries() -> None:
    """Import what rendering needs, for callers that have a moment to spare before there is anything to render."""
    for name in (
        "jinja2",
        "matplotlib.figure",
        "matplotlib.backends.backend_svg",
        "prunebench_report.output.view",
    ):
        importlib.import_module(name)


def export(
    folder: Path,
    format: Literal["json", "csv", "parquet", "sqlite"],  # noqa: A002 - the option's name
    out: Path | None = None,
) -> str | None:
    """The records of a run as one table: text for json and csv without ``out``, else written to ``out``.

    Raises PrunebenchError for a folder that is no run, an unknown format, and parquet or sqlite without ``out``.
    """
    from prunebench_report.output.exports import export as run

    return run(folder, format, out)
