"""Read lm-eval's tables of scores into results of the record."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from prunebench.errors import PrunebenchError
from prunebench.experiment.measures import TaskSpec
from prunebench.measure.quality.task_scores import headline
from prunebench.record.quality import TaskMetric, TaskResult

SEEDS = {"random": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}
"""The seeds that `simple_evaluate` and the command line of lm-eval use by default."""

WRAPPER = "prunebench"
"""The lm-eval group that gives tasks rows from another source; it is in no result."""


def task_results(
    spec: TaskSpec, found: dict[str, Any], commits: Mapping[str, str | None]
) -> list[TaskResult]:
    """One result for each task, and for each group that lm-eval aggregates, groups first.

    ``found`` is what `lm_eval.evaluate` returned, ``commits`` the commit of each task's data set on
    the hub. Raises PrunebenchError if there is no score.
    """
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
    # A suite that asks for a group wants its aggregate; if there is none, it wants every part.
    whole = [result for result in known if result.task == spec.name]
    ordered = sorted(known, key=lambda result: not result.aggregate)
    for result in whole or [result for result in known if not result.aggregate]:
        result.asked = True
    for result in ordered:
        result.data_commit = commits.get(result.task)
    return ordered


def _result(
    spec: TaskSpec, found: dict[str, Any], name: str, parent: str | None
) -> TaskResult | None:
    row = found["results"][name]
    better = found.get("higher_is_better", {}).get(name) or {}
    metrics = [
        _metric(row, key, better)
        for key in row
        # Keys of figures are 'metric,filter'; the rest of a row is text.
        if re.fullmatch(r"[^,]+,[^,]+", key) and "_stderr," not in key
    ]
    shown = headline(name, [metric.metric for metric in metrics])
    if shown is None:
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
        headline=shown,
        generative=_writes(found, name),
        seeds=SEEDS,
        harness=spec.harness,
    )


def _writes(found: dict[str, Any], name: str) -> bool:
    """Whether the model writes its answers; a group does if all of its tasks do."""
    configs = found.get("configs", {})
    children = found.get("group_subtasks", {}).get(name)
    if children:
        return all(_writes(found, child) for child in children)
    return bool(configs.get(name, {}).get("output_type") == "generate_until")


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
    """A figure, or None: lm-eval writes 'N/A' if it has none."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return None
    return float(value) if math.isfinite(value) else None
