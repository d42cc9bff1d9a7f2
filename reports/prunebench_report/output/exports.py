"""The table as JSON, CSV, Parquet or SQLite."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from prunebench.errors import PrunebenchError, did_you_mean
from prunebench.model.files import check_file_target, is_special
from prunebench.store.atomic import write_atomically
from prunebench_report.data.columns import Row, column_names, kind_of
from prunebench_report.data.table import data_frame

if TYPE_CHECKING:
    from prunebench_report.data.report_input import ReportInput

FORMATS = ("json", "csv", "parquet", "sqlite")

_SQL = {"text": "TEXT", "integer": "INTEGER", "real": "REAL", "truth": "INTEGER"}


def check_request(form: str, out: Path | None) -> None:
    """Raise PrunebenchError for an unknown format, and for a file that is missing or cannot be."""
    if form not in FORMATS:
        raise PrunebenchError(f"unknown export format '{form}'", hint=did_you_mean(form, FORMATS))
    if out is None and form in ("parquet", "sqlite"):
        raise PrunebenchError(
            f"{form} cannot be printed", hint=f"name a file with --out, e.g. --out run.{form}"
        )
    if out is not None:
        check_file_target(out)


def export(given: ReportInput, form: str, out: Path | None) -> str | None:
    """Write the table to ``out``, or return it as text if ``out`` is None (json and csv only).

    Raises PrunebenchError if the file cannot be written.
    """
    if form in ("json", "csv"):
        text = as_json(given.table) if form == "json" else as_csv(given.table)
        if out is None:
            return text
        write_atomically(out, text)
    elif out is not None:
        _write_binary(given.table, out, form)
    return None


def as_json(rows: Sequence[Row]) -> str:
    """A list of objects, one for each row; null for what is missing, never NaN."""
    return json.dumps(rows, indent=1, allow_nan=False) + "\n"


def as_csv(rows: Sequence[Row]) -> str:
    """A header and one line for each row; an empty field for what is missing."""
    return data_frame(rows).to_csv(index=False, lineterminator="\n")


def _write_binary(rows: Sequence[Row], out: Path, form: str) -> None:
    """Write beside ``out``, then move: a reader sees the old file or the whole new one."""
    # The temporary folder is beside the file, because only a rename within a file system is atomic.
    special = is_special(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out = out.resolve()  # a link stays a link: what it names is replaced
        beside = None if special else out.parent
        with tempfile.TemporaryDirectory(dir=beside, prefix=f".{out.name}.") as folder:
            new = Path(folder) / out.name
            if form == "parquet":
                with new.open("wb") as file:  # Arrow takes no path that is not UTF-8
                    data_frame(rows).to_parquet(file, index=False)
            else:
                _write_sqlite(rows, new)
            if special:  # a device or a pipe is written into
                with out.open("wb") as file:
                    file.write(new.read_bytes())
            else:
                new.replace(out)
    except (OSError, sqlite3.Error) as error:
        raise PrunebenchError(
            f"cannot write {out}: {error}", hint="name another file with --out"
        ) from error


def _write_sqlite(rows: Sequence[Row], path: Path) -> None:
    names = list(rows[0]) if rows else column_names(0, 0)
    columns = ", ".join(f'"{name}" {_SQL[kind_of(name)]}' for name in names)
    # Column names are our own; values are bound, never formatted into the statement.
    marks = ", ".join("?" * len(names))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"CREATE TABLE cells ({columns})")
        values = [tuple(row.values()) for row in rows]
        connection.executemany(f"INSERT INTO cells VALUES ({marks})", values)  # noqa: S608
