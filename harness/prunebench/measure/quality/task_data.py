"""Rows for lm-eval's tasks that do not come from the hub: data of plugins, and folders of files."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunebench.errors import PrunebenchError, first_line

Rows = Sequence[dict[str, Any]]

HUB = "hub"
"""The name under which a suite asks for lm-eval's own data sets."""

SPLITS = ("train", "validation", "test", "dev")
SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz")
LAYOUT = (
    "FOLDER/TASK/SPLIT.parquet or .jsonl or .jsonl.gz, with SPLIT train, validation, test or dev"
)

_FILE = re.compile(rf"({'|'.join(SPLITS)})(?:[-_.].*)?(?:{'|'.join(map(re.escape, SUFFIXES))})")
_SUBJECT = "subject"


class TaskData(ABC):
    """Rows for tasks of lm-eval.

    Subclass it, set the attributes, and return an instance from `prunebench_register_task_data`.
    Prompts, choices and metrics are those of the installed lm-eval, so the rows must have the
    columns of its data set.
    """

    name: str
    summary: str
    """One line."""
    licence: str
    tasks: tuple[str, ...]
    """Names of the tasks in lm-eval."""
    revision: str | None = None
    """Pins the rows. Cells with different revisions are different experiments."""
    few_shot: bool = False
    """Whether the rows include the split from which few-shot examples are drawn."""

    @abstractmethod
    def splits(self, task: str) -> Mapping[str, Rows]:
        """The rows of ``task`` by split (train, validation, test, dev), in a fixed order."""


def split_of(path: Path) -> str | None:
    """The split of a file: 'train' of train.parquet, train_head500.parquet, train-0-of-2.jsonl.

    None if its name is not that of a split's file.
    """
    match = _FILE.fullmatch(path.name)
    return match[1] if match else None


def task_files(folder: Path, task: str, family: str = "") -> list[Path]:
    """The files of ``task`` in a folder with the structure `LAYOUT`, sorted by name.

    ``family`` is the folder in which lm-eval defines the task. If there is no folder of the task, a
    folder named like its family serves all tasks of the family: each takes the rows whose column
    `subject` is its dataset name ('anatomy' for 'mmlu_anatomy').
    """
    for name in (task, family):
        place = folder / name
        found = (
            sorted(path for path in place.iterdir() if split_of(path))
            if name and place.is_dir()
            else []
        )
        if found:
            return found
    return []


def read_splits(files: Sequence[Path], subject: str | None = None) -> dict[str, Rows]:
    """The rows of these files by split; several files of one split are joined in the given order.

    With ``subject``, a file that has a column `subject` gives only the rows of that subject.
    Raises PrunebenchError with the name of a file that cannot be read.
    """
    splits: dict[str, list[dict[str, Any]]] = {}
    for path in files:
        rows = _parquet(path, subject) if path.name.endswith(".parquet") else _lines(path, subject)
        splits.setdefault(split_of(path) or "", []).extend(rows)
    return dict(splits)


def _parquet(path: Path, subject: str | None) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    try:
        filtered = subject is not None and _SUBJECT in pq.read_schema(path).names
        table = pq.read_table(path, filters=[(_SUBJECT, "=", subject)] if filtered else None)
    except (OSError, ValueError) as error:  # pyarrow's errors are subclasses of these
        raise _unreadable(path, error) from error
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _lines(path: Path, subject: str | None) -> list[dict[str, Any]]:
    try:
        with gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb") as file:
            rows = [json.loads(line) for line in file if line.strip()]
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error
    if not all(isinstance(row, dict) for row in rows):
        raise PrunebenchError(
            f"{path}: a line is no JSON object", hint="each line must be one row of the data set"
        )
    return [row for row in rows if subject is None or row.get(_SUBJECT, subject) == subject]


def _unreadable(path: Path, error: Exception) -> PrunebenchError:
    return PrunebenchError(
        f"{path} cannot be read: {first_line(error)}", hint="copy or download the file again"
    )
