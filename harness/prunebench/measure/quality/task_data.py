"""Rows for lm-eval's tasks that do not come from the hub: data of plugins, and folders of files."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prunebench.errors import PrunebenchError
from prunebench.text.user_files import check_once, json_rows, parquet_rows, text_fault

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
        rows = _checked_rows(path)
        splits.setdefault(split_of(path) or "", []).extend(
            row for row in rows if subject is None or row.get(_SUBJECT, subject) == subject
        )
    return dict(splits)


def check_rows(path: Path, sha256: str) -> None:
    """Raise what `read_splits` would raise for this file; ``sha256`` is the file's hash."""
    check_once(path, "rows of a task", sha256, _checked_rows(path))


def _checked_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file, whose strings a tokenizer can take; a row may lack values."""
    parquet = path.name.endswith(".parquet")
    for number, row in parquet_rows(path) if parquet else json_rows(path):
        for name, value in row.items():
            if fault := _string_fault(value):
                where = f"{path}: row {number}" if parquet else f"{path}:{number}"
                raise PrunebenchError(
                    f"{where}: '{name}' {fault}",
                    hint="repair the text: it was cut or escaped in the middle of a character",
                )
        yield row


def _string_fault(value: Any) -> str | None:
    """What is wrong with a string in ``value``, which may be a list or a mapping."""
    if isinstance(value, str):
        return text_fault(value)
    parts: Iterable[Any] = ()
    if isinstance(value, dict):
        parts = (*value, *value.values())
    elif isinstance(value, list):
        parts = value
    return next(filter(None, map(_string_fault, parts)), None)
