"""The one table as JSON, CSV, Parquet or SQLite."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from prunebench.errors import PrunebenchError, did_you_mean
from prunebench.store.atomic import write_atomically
from prunebench.store.run_folder import RunStore
from prunebench_report.data import columns as fields
from prunebench_report.data import table as frames

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("json", "csv", "parquet", "sqlite")

_SQL = {"text": "TEXT", "integer": "INTEGER", "real": "REAL", "truth": "INTEGER"}


def export(folder: Path, format: str, out: Path | None) -> str | None:  # noqa: A002 - the option's name
    """Write the table of the run in ``folder`` to ``out``, or return it as text where ``out`` is None (json, csv).

    Raises PrunebenchError for a folder that is no run, an unknown format, a binary format without ``out``, and a
    file that cannot be written.
    """
    if format not in FORMATS:
        raise PrunebenchError(
            f"unknown export format '{format}'", hint=did_you_mean(format, FORMATS)
        )
    if out is None and format in ("parquet", "sqlite"):
        raise PrunebenchError(
            f"{format} cannot be printed", hint=f"name a file with --out, e.g. --out run.{format}"
        )
    store = RunStore.open(folder)
    plan = store.read_plan()
    records, _ = store.records(plan.cells)
    frame = frames.table(records, plan.gate, plan.expect)
    if format in ("json", "csv"):
        text = as_json(frame) if format == "json" else as_csv(frame)
        if out is None:
            return text
        write_atomically(out, text)
    elif out is not None:
        _replace(frame, out, format)
    return None


def as_json(frame: pd.DataFrame) -> str:
    """A list of row objects; null for what is missing, never NaN."""
    return json.dumps(frames.rows(frame), indent=1, allow_nan=False) + "\n"


def as_csv(frame: pd.DataFrame) -> str:
    """A header and a line a cell; empty for what is missing."""
    return frame.to_csv(index=False, lineterminator="\n")


def _replace(frame: pd.DataFrame, out: Path, format: str) -> None:  # noqa: A002
    """Write beside ``out``, then move: a reader sees the old file or the whole new one."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
            new = Path(folder) / out.name
            if format == "parquet":
                frame.to_parquet(new, index=False)
            else:
                _sqlite(frame, new)
            new.replace(out)
    except (OSError, sqlite3.Error) as error:
        raise PrunebenchError(
            f"cannot write {out}: {error}", hint="name another file with --out"
        ) from error


def _sqlite(frame: pd.DataFrame, path: Path) -> None:
    columns = ", ".join(f'"{name}" {_SQL[fields.kind_of(name)]}' for name in frame.columns)
    marks = ", ".join("?" * len(frame.columns))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"CREATE TABLE cells ({columns})")
        values = [tuple(row.values()) for row in frames.rows(frame)]
        connection.executemany(f"INSERT INTO cells VALUES ({marks})", values)  # noqa: S608 - marks are '?'
