"""Build the data set that lm-eval would have loaded from the hub for one task."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunebench.byte_path import text_path
from prunebench.errors import PrunebenchError, first_line
from prunebench.experiment.measures import TaskSpec
from prunebench.measure.quality.task_data import LAYOUT, Rows, TaskData, read_splits


def rows_for(
    task: str,
    config: Mapping[str, Any],
    spec: TaskSpec,
    family: str,
    data: Mapping[str, TaskData],
    scratch: Path,
) -> Any:
    """A `datasets.DatasetDict` with the splits that lm-eval's ``config`` of the task names.

    A split that this evaluation does not read can be missing; it is then empty. Raises
    PrunebenchError if a split that it reads is missing, or if the rows do not form a table.
    """
    import datasets

    splits = _splits(task, config, spec, family, data)
    for split, purpose in _read_splits(config, spec).items():
        if not splits.get(split):
            raise PrunebenchError(
                f"task {task}: {_origin(spec)} has no split '{split}', which {purpose}",
                hint="it has " + (", ".join(sorted(splits)) or "none"),
            )
    try:
        found = {
            split: datasets.Dataset.from_list(list(rows)) for split, rows in splits.items() if rows
        }
    except (ValueError, TypeError) as error:  # pyarrow's errors are subclasses of these
        raise PrunebenchError(
            f"task {task}: the rows of {_origin(spec)} make no table: {first_line(error)}",
            hint="every row needs the same columns with values of the same kinds",
        ) from error
    # On disk, because lm-eval preprocesses a split four times per task, and `datasets` caches the
    # result beside the files of a data set, but not that of a data set in memory.
    folder = tempfile.mkdtemp(dir=scratch)
    datasets.DatasetDict(found).save_to_disk(folder)
    there = datasets.load_from_disk(folder)
    nothing = next(iter(found.values())).select([])
    return datasets.DatasetDict({**dict.fromkeys(_named_splits(config), nothing), **there})


def _splits(
    task: str, config: Mapping[str, Any], spec: TaskSpec, family: str, data: Mapping[str, TaskData]
) -> Mapping[str, Rows]:
    if spec.data.path is not None:
        own = [name for name in spec.data.files if Path(name).parts[0] == task]
        files = own or [name for name in spec.data.files if Path(name).parts[0] == family]
        if not files:
            raise PrunebenchError(
                f"task {task}: {_origin(spec)} has no files of it", hint=f"layout: {LAYOUT}"
            )
        subject = None if own else config.get("dataset_name")
        return read_splits([text_path(spec.data.path) / name for name in files], subject)
    source = data.get(spec.data.name)
    if source is None:
        raise PrunebenchError(
            f"task {task}: no plugin registers the data '{spec.data.name}'",
            hint="`prunebench plugins` lists what is there",
        )
    if task not in source.tasks:
        raise PrunebenchError(
            f"{_origin(spec)} has no task '{task}'", hint=f"it has {', '.join(source.tasks)}"
        )
    return source.splits(task)


def _read_splits(config: Mapping[str, Any], spec: TaskSpec) -> dict[str, str]:
    """The splits that must have rows, and what for."""
    # lm-eval scores the test split if a task has one.
    wanted = {}
    if scored := config.get("test_split") or config.get("validation_split"):
        wanted[scored] = "is scored"
    shots = spec.num_fewshot if spec.num_fewshot is not None else config.get("num_fewshot") or 0
    fewshot = config.get("fewshot_config") or {}
    drawn = fewshot.get("split") or config.get("fewshot_split") or config.get("training_split")
    if shots and drawn and "samples" not in fewshot:
        wanted.setdefault(drawn, f"the examples of {shots}-shot prompts are drawn from")
    return wanted


def _named_splits(config: Mapping[str, Any]) -> set[str]:
    """Every split that lm-eval can look up when it builds the task."""
    keys = ("training_split", "validation_split", "test_split", "fewshot_split")
    named = {config.get(key) for key in keys} | {(config.get("fewshot_config") or {}).get("split")}
    return {split for split in named if split}


def _origin(spec: TaskSpec) -> str:
    return (
        f"the folder {spec.data.path}"
        if spec.data.path is not None
        else f"the data '{spec.data.name}'"
    )
