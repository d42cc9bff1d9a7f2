"""From the records of a run to one HTML file, and to the one table that other tools read.

Importing this package is cheap: pandas, matplotlib and jinja2 are imported when something is rendered.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from prunebench.cell.store import RunStore

__all__ = ["export", "import_libraries", "render", "write_report"]


def write_report(folder: Path) -> Path:
    """Render `report.html` into the run folder and return its path. Raises PrunebenchError where it is no run."""
    from prunebench.cell.store import RunStore, write_atomically

    store = RunStore.open(folder)
    write_atomically(store.report_path, render(store))
    return store.report_path


def render(store: RunStore) -> str:
    """The report of a run as one HTML document; the same store gives the same text."""
    from prunebench_report.document import document
    from prunebench_report.view import view

    return document(view(store))


def import_libraries() -> None:
    """Import what rendering needs, for callers that have a moment to spare before there is anything to render."""
    for name in ("jinja2", "matplotlib.figure", "matplotlib.backends.backend_svg", "prunebench_report.view"):
        importlib.import_module(name)


def export(folder: Path, format: Literal["json", "csv", "parquet", "sqlite"], out: Path | None = None) -> str | None:  # noqa: A002
    """The records of a run as one table: text for json and csv without ``out``, else written to ``out``.

    Raises PrunebenchError for a folder that is no run, an unknown format, and parquet or sqlite without ``out``.
    """
    from prunebench_report.exports import export as run

    return run(folder, format, out)
