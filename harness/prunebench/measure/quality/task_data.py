"""Where the rows of lm-eval's tasks come from if not from the hub: plugins' data, and folders of files."""

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
LAYOUT = "FOLDER/TASK/SPLIT.parquet or .jsonl or .jsonl.gz, where SPLIT is train, validation, test or dev"

_FILE = re.compile(rf"({'|'.join(SPLITS)})(?:[-_.].*)?(?:{'|'.join(map(re.escape, SUFFIXES))})")
_SUBJECT = "subject"


class TaskData(ABC):
    """Rows for tasks of lm-eval. Subclass it, set the attributes, and return an instance from the registering hook.

    Prompts, choices and metrics stay those of the installed lm-eval; the rows must have the columns of its data set.
    """

    name: str
    summary: str
    """One line."""
    licence: str
    tasks: tuple[str, ...]
    """Names of the tasks, as lm-eval has them."""
    revision: str | None = None
    """Pins the rows. Cells with different revisions are different experiments."""
    few_shot: bool = False
    """Whether the rows hold the split that the examples of few-shot prompts are drawn from."""

    @abstractmethod
    def splits(self, task: str) -> Mapping[str, Rows]:
        """The rows of one of ``tasks`` by split (train, validation, test, dev), always in the same order."""


def split_of(path: Path) -> str | None:
    """The split that a file belongs to: 'train' of train.parquet, train_head500.parquet, train-00000-of-00002.parquet."""
    match = _FILE.fullmatch(path.name)
    return match[1] if match else None


def task_files(folder: Path, task: str, family: str = "") -> list[Path]:
    """The files of ``task`` in a folder laid out as `LAYOUT`, by name; none where it has none.

    ``family`` is the folder in which lm-eval defines the task. A folder of that name serves all its tasks: of its rows,
    a task takes those whose column `subject` is the task's dataset name ('anatomy' for 'mmlu_anatomy').
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
    """The rows of these files by split, several files of one split joined in order of their names.

    With ``subject``, files with a column of that name give only the rows of this subject.
    Raises PrunebenchError naming the file that cannot be read.
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
    except (OSError, ValueError) as error:  # pyarrow's errors are among these
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
