"""Tasks of lm-eval on a model that is in memory: its prompts, choices, metrics and versions, unchanged.

`lm_eval.evaluate` is called, not `simple_evaluate` around it: that one indexes all 14,000 task files and asks git, the
hub and the system for their versions, some twenty seconds a call, and adds only what `_configured` and `_seed` do.
"""

from __future__ import annotations

import copy
import math
import os
import random
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prunebench.errors import PrunebenchError
from prunebench.experiment.measures import TaskSpec
from prunebench.measure.quality.task_data import HUB, TaskData
from prunebench.measure.quality.task_index import TaskIndex, task_index
from prunebench.measure.quality.task_rows import rows_for
from prunebench.measure.quality.task_scores import headline
from prunebench.model.placement import input_device
from prunebench.record.quality import TaskMetric, TaskResult

SEEDS = {"random": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}
"""What `simple_evaluate` and the command line of lm-eval set where nothing is said."""

WRAPPER = "prunebench"
"""The group of lm-eval through which another source of rows reaches the tasks; it has no aggregate and no row."""

Progress = Callable[[int, int], None]


def evaluate_tasks(
    model: Any,
    tokenizer: Any,
    specs: Sequence[TaskSpec],
    *,
    data: Mapping[str, TaskData] | None = None,
    progress: Progress | None = None,
) -> list[TaskResult]:
    """The scores of ``model`` on every task that ``specs`` name, in their order; aggregates of groups before their parts.

    ``data`` are the registered sources of rows. ``progress(done, total)`` is called in tasks and thousandths of a task.
    Nothing is cached, and random states, environment and tokenizer are afterwards what they were before.

    Raises PrunebenchError for a task that lm-eval does not know, rows that are missing, and scores that are not finite.
    """
    if not specs:
        return []
    index = task_index()
    results: list[TaskResult] = []
    with (
        _as_found(input_device(model)),
        tempfile.TemporaryDirectory(prefix="prunebench-tasks-") as scratch,
    ):
        manager = _manager(index, specs)
        for number, spec in enumerate(specs):
            moved = None if progress is None else _part(progress, number, len(specs))
            results += _evaluate(
                model, tokenizer, spec, _Sources(index, manager, data or {}, Path(scratch)), moved
            )
            if progress is not None:
                progress(1000 * (number + 1), 1000 * len(specs))
    return results


def _part(progress: Progress, number: int, count: int) -> Progress:
    return lambda done, total: progress(1000 * number + 1000 * done // total, 1000 * count)


@contextmanager
def _as_found(device: torch.device) -> Iterator[None]:
    """Give back the states that lm-eval and we set, whatever happens."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global generator is what lm-eval seeds
    environment = dict(os.environ)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        for name in os.environ.keys() - environment.keys():  # lm-eval sets some when it is imported
            del os.environ[name]


def _seed() -> None:
    random.seed(SEEDS["random"])
    np.random.seed(SEEDS["numpy"])  # noqa: NPY002
    torch.manual_seed(SEEDS["torch"])


def _manager(index: TaskIndex, specs: Sequence[TaskSpec]) -> Any:
    """A manager that has read only the folders of lm-eval that these tasks need."""
    from lm_eval.tasks import TaskManager

    names = [spec.name for spec in specs]
    unknown = [name for name in names if name not in index.names]
    if unknown:
        raise PrunebenchError(
            f"lm-eval {index.version} knows no task '{unknown[0]}'",
            hint="`lm-eval ls tasks` lists the names",
        )
    return TaskManager(
        include_defaults=False, include_path=[str(folder) for folder in index.folders(names)]
    )


@dataclass(frozen=True)
class _Sources:
    """Where tasks and rows come from."""

    index: TaskIndex
    manager: Any
    data: Mapping[str, TaskData]
    scratch: Path


def _evaluate(
    model: Any, tokenizer: Any, spec: TaskSpec, sources: _Sources, progress: Progress | None
) -> list[TaskResult]:
    import lm_eval

    _seed()
    loaded = _configured(sources.manager.load([_wanted(spec, sources)]), spec)
    watch = _Watch(spec.name, list(loaded["tasks"].values()), progress)
    lm = _language_model(model, tokenizer, spec.batch_size)
    lm.set_cache_hook(watch)
    found = lm_eval.evaluate(lm=lm, task_dict=loaded, limit=spec.limit, log_samples=False)
    return _results(spec, found)


def _wanted(spec: TaskSpec, sources: _Sources) -> str:
    """The name to load: the task's own, or that of a group put around it that says where rows come from."""
    if spec.data.name == HUB and spec.data.path is None:
        return spec.name
    from lm_eval.tasks.manager import Entry, Kind

    index, known = sources.index, sources.manager.task_index
    if python := [leaf for leaf in index.leaves(spec.name) if known[leaf].kind is Kind.PY_TASK]:
        raise PrunebenchError(
            f"the task '{python[0]}' brings its own data: it is written in Python",
            hint=f"use `data: {HUB}` for it",
        )
    names = {str(known[name].yaml_path): name for name in index.leaves(spec.name)}

    def custom_dataset(config_source: str = "", **_: Any) -> Any:
        task = names[config_source]  # the file in which lm-eval defines the task that asks
        return rows_for(
            task, known[task].cfg, spec, index.family(task), sources.data, sources.scratch
        )

    # In the index, not as a mapping given to `load`: there the group's own keys would override those of its tasks.
    group = {"group": WRAPPER, "task": [spec.name], "custom_dataset": custom_dataset}
    known[WRAPPER] = Entry(name=WRAPPER, kind=Kind.GROUP, yaml_path=None, cfg=group)
    return WRAPPER


def _configured(loaded: dict[str, Any], spec: TaskSpec) -> dict[str, Any]:
    """Shots and the seed of their choice, as `simple_evaluate` sets them."""
    for name, task in loaded["tasks"].items():
        own = task.get_config("num_fewshot")
        if spec.num_fewshot is None:
            task.set_config(key="num_fewshot", value=own or 0)
        elif own == 0 and spec.num_fewshot > 0:
            raise PrunebenchError(
                f"the task '{name}' is zero-shot by its definition, {spec.num_fewshot} shots are asked for",
                hint="leave `num_fewshot` out for it",
            )
        else:
            task.set_config(key="num_fewshot", value=spec.num_fewshot)
        task.set_fewshot_seed(seed=SEEDS["fewshot"])
    return loaded


def _language_model(model: Any, tokenizer: Any, batch_size: int) -> Any:
    """lm-eval's face of the model. The batch size is set here: `evaluate` does not pass one on (lm-eval issue 3207)."""
    from lm_eval.models.huggingface import HFLM

    # A copy, because a padding token is set on it.
    face = HFLM(
        pretrained=model,
        tokenizer=copy.deepcopy(tokenizer),
        backend="causal",
        batch_size=batch_size,
    )
    face._device = input_device(model)  # it takes that of the first weight, which may be on disk
    return face


class _Watch:
    """Stands where lm-eval would cache answers: sees each as it comes, keeps none."""

    def __init__(self, name: str, tasks: list[Any], progress: Progress | None) -> None:
        self._name = name
        self._tasks = tasks
        self._progress = progress
        self._done = 0

    def add_partial(self, kind: str, request: Any, answer: Any) -> None:
        """Called once a request."""
        del kind, request
        score = answer[0] if isinstance(answer, tuple) else answer
        if isinstance(score, float) and math.isnan(score):
            raise PrunebenchError(
                f"task {self._name}: the likelihood of an answer is not a number",
                hint="the pruned model overflows: run it with dtype float32, or prune less",
            )
        self._done += 1
        if self._progress is not None:
            total = sum(len(task.instances) for task in self._tasks)
            self._progress(min(self._done, total), max(1, total))


def _results(spec: TaskSpec, found: dict[str, Any]) -> list[TaskResult]:
    """lm-eval's tables as one result a task; a group gets one where lm-eval aggregates it."""
    parents: dict[str, str] = {}
    for group, children in found.get("group_subtasks", {}).items():
        if group != WRAPPER:
            for child in children:
                parents.setdefault(child, group)
    results = [_result(spec, found, name, parents.get(name)) for name in found["results"]]
    known = [result for result in results if result is not None]
    if not known:
        raise PrunebenchError(
            f"task {spec.name}: lm-eval gave no score", hint="the end of the log may say why"
        )
    whole = [result for result in known if result.task == spec.name]
    ordered = sorted(known, key=lambda result: not result.aggregate)
    for result in whole or [result for result in known if not result.aggregate]:
        result.asked = True
    return ordered


def _result(
    spec: TaskSpec, found: dict[str, Any], name: str, parent: str | None
) -> TaskResult | None:
    row = found["results"][name]
    better = found.get("higher_is_better", {}).get(name) or {}
    metrics = [
        _metric(row, key, better)
        for key in row
        if re.fullmatch(r"[^,]+,[^,]+", key) and "_stderr," not in key
    ]
    stands = headline(name, [metric.metric for metric in metrics])
    if stands is None:
        return None
    counts = found.get("n-samples", {}).get(name) or {}
    shots = found.get("n-shot", {}).get(name)
    version = found.get("versions", {}).get(name)
    return TaskResult(
        task=name,
        group=parent,
        aggregate=name in found.get("group_subtasks", {}),
        asked=False,
        data=spec.data.name,
        num_fewshot=shots if isinstance(shots, int) else None,
        version=None if version is None else str(version),
        samples=int(counts.get("effective", row.get("sample_len") or 0)),
        samples_total=counts.get("original"),
        metrics=metrics,
        headline=stands,
        seeds=SEEDS,
        harness=spec.harness,
    )


def _metric(row: Mapping[str, Any], key: str, better: Mapping[str, Any]) -> TaskMetric:
    metric, _, chosen = key.partition(",")
    return TaskMetric(
        metric=metric,
        filter=chosen,
        value=_finite(row[key]),
        stderr=_finite(row.get(f"{metric}_stderr,{chosen}")),
        higher_is_better=better.get(metric) is not False,
    )


def _finite(value: Any) -> float | None:
    """lm-eval writes 'N/A' where there is no figure."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return None
    return float(value) if math.isfinite(value) else None
