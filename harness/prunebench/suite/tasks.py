"""`quality.tasks` of a suite: names looked up in lm-eval, rows found, their files hashed."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prunebench.byte_path import is_utf8, path_text
from prunebench.errors import PrunebenchError, did_you_mean, printable
from prunebench.experiment.measures import TaskDataRef, TaskSpec
from prunebench.measure.quality.task_data import (
    HUB,
    LAYOUT,
    TaskData,
    check_rows,
    split_of,
    task_files,
)
from prunebench.measure.quality.task_index import TaskIndex, task_index
from prunebench.measure.quality.task_needs import check_task
from prunebench.model.cache import file_sha256
from prunebench.suite.problems import Problems, hint_of
from prunebench.suite.schema import TaskEntry
from prunebench.user_path import user_path

if TYPE_CHECKING:
    from prunebench.plugin.registry import Registry
    from prunebench.suite.yaml import KeyPath

EXAMPLES = {"train", "dev"}
"""Few-shot examples are drawn from one of these splits."""


def task_specs(
    entries: Sequence[TaskEntry], registry: Registry, problems: Problems
) -> tuple[TaskSpec, ...]:
    """Every task that the entries name, equal ones once; the others go to ``problems``."""
    if not entries:
        return ()
    try:
        index = task_index()
    except PrunebenchError as error:
        problems.add(("quality", "tasks"), error.message, error.hint)
        return ()
    found: dict[str, TaskSpec] = {}
    for position, entry in enumerate(entries):
        path = ("quality", "tasks", position)
        for spec in _Entry(entry, path, index, registry, problems).specs():
            found.setdefault(json.dumps(spec.identity(), sort_keys=True), spec)
    return tuple(found.values())


@dataclass(frozen=True)
class _Entry:
    entry: TaskEntry
    path: KeyPath
    index: TaskIndex
    registry: Registry
    problems: Problems

    def specs(self) -> Iterator[TaskSpec]:
        # All names are checked first: a wrong source must not hide a misspelt task.
        known = [self._known(name, number) for number, name in enumerate(self.entry.task)]
        try:
            source = self._source()
        except PrunebenchError as error:
            hint = hint_of(error, self.entry.data, self.registry)
            self.problems.add((*self.path, "data"), error.message, hint)
            return
        for number, name in enumerate(self.entry.task):
            if not known[number]:
                continue
            try:
                data = self._data(name, source)
            except PrunebenchError as error:
                self.problems.add((*self.path, "task", number), error.message, error.hint)
                continue
            yield TaskSpec(
                name=name,
                data=data,
                limit=self.entry.limit,
                num_fewshot=self.entry.num_fewshot,
                batch_size=self.entry.batch_size,
                max_new_tokens=self.entry.max_new_tokens,
                harness=self.index.version,
            )

    def _known(self, name: str, number: int) -> bool:
        if name in self.index.names:
            try:
                check_task(self.index, name)
            except PrunebenchError as error:
                self.problems.add((*self.path, "task", number), error.message, error.hint)
                return False
            return True
        # Thousands of names: `did_you_mean` would list them all if none is near.
        near = difflib.get_close_matches(name, self.index.names, n=1, cutoff=0.6)
        hint = f"did you mean '{near[0]}'?" if near else "`lm-eval ls tasks` lists the names"
        self.problems.add(
            (*self.path, "task", number),
            f"lm-eval {self.index.version} knows no task '{name}'",
            hint,
        )
        return False

    def _source(self) -> TaskData | Path | None:
        """Where the rows come from: registered data, a folder, or None for the hub."""
        name = self.entry.data
        registered: Mapping[str, TaskData] = self.registry.registered("task data")
        if name == HUB:
            return None
        if name in registered:
            return registered[name]
        base = self.problems.source.base((*self.path, "data"))
        hint = f"name a folder, or registered data: {', '.join([HUB, *registered])}"
        folder = user_path(name, what="data", hint=hint, base=base)
        if folder.is_dir():
            return folder.resolve()
        if "/" in name or name.startswith("."):
            raise PrunebenchError(
                f"no folder {folder}", hint="a path in a suite is relative to the suite's folder"
            )
        raise PrunebenchError(f"unknown data '{name}'", hint=did_you_mean(name, [HUB, *registered]))

    def _data(self, name: str, source: TaskData | Path | None) -> TaskDataRef:
        leaves = self.index.leaves(name)
        if source is None:
            return TaskDataRef()
        if isinstance(source, Path):
            return self._folder(source, leaves)
        missing = [leaf for leaf in leaves if leaf not in source.tasks]
        if missing:
            raise PrunebenchError(
                f"the data '{source.name}' has no task '{missing[0]}'",
                hint=f"it has {', '.join(source.tasks)}",
            )
        # None is not 0, and is fine: the task's own number may be 0.
        if self.entry.num_fewshot and not source.few_shot:
            raise _no_examples(f"the data '{source.name}' has")
        return TaskDataRef(name=source.name, revision=source.revision)

    def _folder(self, folder: Path, leaves: Sequence[str]) -> TaskDataRef:
        files: dict[str, str] = {}
        for leaf in leaves:
            own = task_files(folder, leaf, self.index.family(leaf))
            if not own:
                raise PrunebenchError(
                    f"the folder {folder} has no files of the task '{leaf}'",
                    hint=f"layout: {LAYOUT}",
                )
            if self.entry.num_fewshot and not EXAMPLES & {split_of(path) for path in own}:
                raise _no_examples(f"{own[0].parent} has")
            if odd := [path for path in own if not is_utf8(path.name)]:
                raise PrunebenchError(f"the name of {odd[0]} is not UTF-8", hint="rename the file")
            files |= {path.relative_to(folder).as_posix(): "" for path in own}
        # The content identifies the rows; the folder may be moved.
        hashed = {name: file_sha256(folder / name) for name in sorted(files)}
        for name, digest in hashed.items():
            check_rows(folder / name, digest)
        return TaskDataRef(name=printable(folder.name), path=path_text(folder), files=hashed)


def _no_examples(who: str) -> PrunebenchError:
    return PrunebenchError(
        f"{who} no train split, so there are no examples for few-shot prompts",
        hint="set `num_fewshot: 0`, or name other `data`",
    )
