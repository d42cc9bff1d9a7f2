"""Run tasks of lm-eval on a model in memory, with its prompts, choices, metrics and versions.

This calls `lm_eval.evaluate` and not `simple_evaluate`, which wraps it. The wrapper indexes all
14,000 task files and asks git, the hub and the system for their versions, which takes some twenty
seconds per call, and adds only what `_configured` and `_seed` do.
"""

from __future__ import annotations

import copy
import math
import os
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, chdir, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prunebench.byte_path import temporary_parent
from prunebench.errors import PrunebenchError
from prunebench.experiment.measures import TaskSpec
from prunebench.measure.quality.choice_scores import ChoiceScores, choice_scores
from prunebench.measure.quality.task_answers import AnswerLog
from prunebench.measure.quality.task_data import HUB, TaskData
from prunebench.measure.quality.task_hub import commit_of, hub_datasets
from prunebench.measure.quality.task_index import TaskIndex, task_index
from prunebench.measure.quality.task_results import SEEDS, WRAPPER, task_results
from prunebench.measure.quality.task_rows import rows_for
from prunebench.model.placement import input_device
from prunebench.record.quality import TaskResult

Progress = Callable[[int, int], None]


def evaluate_tasks(
    model: Any,
    tokenizer: Any,
    specs: Sequence[TaskSpec],
    *,
    data: Mapping[str, TaskData] | None = None,
    progress: Progress | None = None,
    choices: dict[str, list[ChoiceScores]] | None = None,
) -> list[TaskResult]:
    """The scores of ``model`` on the tasks of ``specs``, in that order; groups before their parts.

    ``data`` are the registered sources of rows. ``progress(done, total)`` counts thousandths of a
    task. ``choices`` takes, by task, what the model makes of multiple-choice questions. Nothing is
    cached, and random states, environment and tokenizer are restored at the end.

    Raises PrunebenchError if lm-eval does not know a task, if rows are missing, or if a likelihood
    is not a number.
    """
    if not specs:
        return []
    index = task_index()
    results: list[TaskResult] = []
    with (
        _as_found(input_device(model)),
        tempfile.TemporaryDirectory(prefix="prunebench-tasks-", dir=temporary_parent()) as scratch,
    ):
        manager = _manager(index, specs)
        lm = _language_model(model, tokenizer)
        for number, spec in enumerate(specs):
            moved = None if progress is None else _part(progress, number, len(specs))
            sources = _Sources(index, manager, data or {}, Path(scratch))
            found, scored = _evaluate(lm, spec, sources, moved)
            results += found
            if choices is not None:
                choices |= scored()
            if progress is not None:
                progress(1000 * (number + 1), 1000 * len(specs))
    return results


def _part(progress: Progress, number: int, count: int) -> Progress:
    return lambda done, total: progress(1000 * number + 1000 * done // total, 1000 * count)


@contextmanager
def _as_found(device: torch.device) -> Iterator[None]:
    """Restore the random states and the environment that lm-eval changes."""
    # lm-eval draws from numpy's global generator.
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    environment = dict(os.environ)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        # lm-eval sets variables when it is imported.
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]


def _seed() -> None:
    random.seed(SEEDS["random"])
    np.random.seed(SEEDS["numpy"])  # noqa: NPY002
    torch.manual_seed(SEEDS["torch"])


def _manager(index: TaskIndex, specs: Sequence[TaskSpec]) -> Any:
    """lm-eval's manager of tasks, with only the folders that these tasks need."""
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
    """Where tasks and their rows come from."""

    index: TaskIndex
    manager: Any
    data: Mapping[str, TaskData]
    scratch: Path


def _evaluate(
    lm: Any, spec: TaskSpec, sources: _Sources, progress: Progress | None
) -> tuple[list[TaskResult], Callable[[], dict[str, list[ChoiceScores]]]]:
    """The results, and what gives the scores of the choices, which takes time to count tokens."""
    import lm_eval

    _seed()
    with _away_from_namesakes(spec, sources), hub_datasets():
        loaded = _configured(sources.manager.load([_name_to_load(spec, sources)]), spec)
    watch = _Watch(spec.name, list(loaded["tasks"].values()), progress)
    answered = AnswerLog(loaded["tasks"])
    lm.set_cache_hook(watch)
    lm.start(spec.batch_size)
    found = lm_eval.evaluate(lm=lm, task_dict=loaded, limit=spec.limit, log_samples=False)
    commits = {name: commit_of(task.dataset) for name, task in loaded["tasks"].items()}
    results = task_results(spec, found, commits)
    for result in results:
        result.answers, result.correct = answered.of(result.task, result.headline)
        result.one_by_one = lm.one_by_one

    def scored() -> dict[str, list[ChoiceScores]]:
        found = {
            result.task: choice_scores(lm, loaded["tasks"].get(result.task), result.correct)
            for result in results
        }
        return {name: scores for name, scores in found.items() if scores is not None}

    return results, scored


def _away_from_namesakes(spec: TaskSpec, sources: _Sources) -> AbstractContextManager[None]:
    """Another working folder, if this one has a folder or a script named like a data set.

    `datasets` would take it for the data set of the hub.
    """
    index, known = sources.index, sources.manager.task_index
    names = {known[leaf].cfg.get("dataset_path") for leaf in index.leaves(spec.name)} - {None}
    script = [f"{name.rpartition('/')[2]}.py" for name in names]
    away = any(Path(name).exists() for name in (*names, *script))
    return chdir(sources.scratch) if away else nullcontext()


def _name_to_load(spec: TaskSpec, sources: _Sources) -> str:
    """The name to load: the task itself, or a group around it that gives it other rows."""
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
        task = names[config_source]  # the YAML file of the task that wants its rows
        return rows_for(
            task, known[task].cfg, spec, index.family(task), sources.data, sources.scratch
        )

    # Put into the index: the keys of a group that is passed to `load` override those of its tasks.
    group = {"group": WRAPPER, "task": [spec.name], "custom_dataset": custom_dataset}
    known[WRAPPER] = Entry(name=WRAPPER, kind=Kind.GROUP, yaml_path=None, cfg=group)
    return WRAPPER


def _configured(loaded: dict[str, Any], spec: TaskSpec) -> dict[str, Any]:
    """Set the number of few-shot examples and the seed of their choice like `simple_evaluate`."""
    for name, task in loaded["tasks"].items():
        own = task.get_config("num_fewshot")
        if spec.num_fewshot is None:
            task.set_config(key="num_fewshot", value=own or 0)
        elif own == 0 and spec.num_fewshot > 0:
            raise PrunebenchError(
                f"the task '{name}' is zero-shot by its definition, "
                f"and the suite asks for {spec.num_fewshot} shots",
                hint="leave `num_fewshot` out for it",
            )
        else:
            task.set_config(key="num_fewshot", value=spec.num_fewshot)
        if spec.max_new_tokens is not None and task.get_config("generation_kwargs"):
            longest = {"max_gen_toks": spec.max_new_tokens}
            task.set_config(key="generation_kwargs", value=longest, update=True)
        task.set_fewshot_seed(seed=SEEDS["fewshot"])
    return loaded


def _language_model(model: Any, tokenizer: Any) -> Any:
    """The model as lm-eval wants it."""
    # Here, because it loads lm-eval.
    from prunebench.measure.quality.tree_scoring import TreeScoringLM

    wrapped = TreeScoringLM(
        pretrained=model,
        tokenizer=_with_padding(tokenizer),
        backend="causal",
    )
    # lm-eval takes the device of the first weight, which is 'meta' if that weight is on disk.
    wrapped._device = input_device(model)
    return wrapped


def _with_padding(tokenizer: Any) -> Any:
    """A copy that has a padding token, or lets lm-eval find one."""
    own = copy.deepcopy(tokenizer)  # lm-eval sets a padding token on it
    # Without any of these lm-eval adds a token, which the model has no embedding for. Padding is
    # not scored, so it may be any token.
    if own.pad_token is None and own.unk_token is None and own.eos_token is None:
        own.pad_token = own.bos_token
    return own


class _Watch:
    """Takes the place of lm-eval's cache of answers: sees each answer as it comes, keeps none."""

    def __init__(self, name: str, tasks: list[Any], progress: Progress | None) -> None:
        self._name = name
        self._tasks = tasks
        self._progress = progress
        self._done = 0

    def add_partial(self, kind: str, request: Any, answer: Any) -> None:
        """lm-eval calls this with each answer."""
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
