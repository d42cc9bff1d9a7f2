"""What every metric promises, tried on a dense model, a sparse one and one with fewer layers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from prunebench.measure.quality.choice_scores import ChoiceScores
from prunebench.measure.quality.greedy import end_tokens
from prunebench.model.surgery import remove_layers
from prunebench.plugin.api.metric import LONGEST_METRIC_NOTES, MetricContext
from prunebench.record.quality import TaskMetric, TaskResult
from prunebench.testing import surroundings
from prunebench.testing.models import tiny_calibration, tiny_model, tiny_tokenizer
from prunebench.testing.promises import (
    NotApplicableError,
    Promise,
    Trial,
    as_json,
    documented,
    promise,
    same,
)
from prunebench.testing.trial import sparse_model

if TYPE_CHECKING:
    from prunebench.plugin.api.metric import Metric


@dataclass(frozen=True)
class MetricTrial(Trial):
    """One metric with some options on one model family."""

    plugin: type[Metric]
    family: str = "llama"
    options: Mapping[str, Any] = field(default_factory=dict)

    def ready(self) -> None:
        """Measure a model once. Raises what the metric raises."""
        _ = self.of_sparse

    def parsed(self) -> Any:
        return self.plugin.Options.model_validate(dict(self.options))

    def dense(self) -> Any:
        return tiny_model(self.family)

    def measure(self, model: Any, dense: Any = None, device: str = "cpu") -> dict[str, float]:
        """The metric's figures by name."""
        return self._measure(model, dense, device)[0]

    def _measure(
        self, model: Any, dense: Any = None, device: str = "cpu"
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """The figures by name, and the notes."""
        tokens = tiny_calibration().to(device) if self.plugin.needs_text else None
        # Passed in by `looks_only`, which compares it afterwards.
        other = self.dense() if dense is None else dense
        context = MetricContext(
            tokens,
            seed=0,
            load_dense=lambda: other.to(device),
            end_tokens=end_tokens(model, tiny_tokenizer()),
            tasks=[_task(model.to(device))] if self.plugin.needs_tasks else [],
            score_choices=_choices if self.plugin.needs_tasks else None,
        )
        # As in a cell: seeded before each metric, so that a metric may draw from the generator.
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            plugin = self.plugin(self.parsed())
            with surroundings.undone(plugin, "the metric", self.flags):
                given = plugin.measure(model.to(device), tiny_tokenizer(), context)
        promise(
            tokens is None or torch.equal(context.windows.cpu(), tiny_calibration()),
            "the tokens of the text were changed",
        )
        values = given if isinstance(given, Mapping) else {self.plugin.name: given}
        return {name: float(value) for name, value in values.items()}, context.notes

    @cached_property
    def of_sparse(self) -> tuple[dict[str, float], dict[str, Any]]:
        """Figures and notes of the sparse model."""
        return self._measure(sparse_model(self.family))

    @property
    def figures(self) -> dict[str, float]:
        """The figures of the sparse model."""
        return self.of_sparse[0]

    @property
    def notes(self) -> dict[str, Any]:
        """The notes about the sparse model."""
        return self.of_sparse[1]


@torch.no_grad()
def _choices(model: Any) -> dict[str, list[ChoiceScores]]:
    """The scores of a task with a question of three choices for each window."""
    found = []
    for window in tiny_calibration().to(model.device):  # [length]
        nll = []
        for choice in window[8:20].view(3, 4):
            ids = torch.cat([window[:8], choice])[None]
            likely = model(ids, use_cache=False).logits[0, 7:-1].float().log_softmax(-1)
            nll.append(-float(likely.gather(1, choice[:, None]).mean()))
        found.append(ChoiceScores(tuple(nll), nll[0] == min(nll)))
    return {"choices": found}


def _task(model: Any) -> TaskResult:
    """What the record holds of that task."""
    correct = "".join(str(int(one.correct)) for one in _choices(model)["choices"])
    score = TaskMetric(
        metric="acc", filter="none", value=correct.count("1") / len(correct), stderr=None
    )
    return TaskResult(
        task="choices",
        asked=True,
        data="made up",
        num_fewshot=0,
        version=None,
        samples=len(correct),
        samples_total=len(correct),
        metrics=[score],
        headline="acc",
        seeds={},
        harness="none",
        correct=correct,
    )


def finite(trial: MetricTrial) -> None:
    for what, model in (("dense", trial.dense()), ("pruned", sparse_model(trial.family))):
        for name, value in trial.measure(model).items():
            promise(math.isfinite(value), f"{name} of a {what} model is {value}")


def shorter(trial: MetricTrial) -> None:
    model = trial.dense()
    remove_layers(model, {1})  # not the last: the layers behind it get other indices
    for name, value in trial.measure(model).items():
        promise(math.isfinite(value), f"{name} is {value} after a layer was removed")


def names(trial: MetricTrial) -> None:
    promise(bool(trial.figures), "it returns no figure")
    missing = sorted(set(trial.plugin.figures) - set(trial.figures))
    promise(not missing, f"`figures` names {', '.join(missing)}, which it does not return")


def seed(trial: MetricTrial) -> None:
    figures, notes = MetricTrial(trial.plugin, trial.family, trial.options).of_sparse
    promise(figures == trial.figures, f"two runs with one seed give {trial.figures} and {figures}")
    promise(notes == trial.notes, "two runs with one seed write different notes")


def notes(trial: MetricTrial) -> None:
    as_json(trial)
    size = len(json.dumps(trial.notes))
    promise(
        size <= LONGEST_METRIC_NOTES,
        f"context.notes has {size:,} characters of JSON, more than {LONGEST_METRIC_NOTES:,}",
    )


def looks_only(trial: MetricTrial) -> None:
    models = {"model": sparse_model(trial.family), "dense model": trial.dense()}
    hooks = {name: surroundings.hooks(model) for name, model in models.items()}
    before = surroundings.of_process()
    own = {name: surroundings.of_model(model) for name, model in models.items()}
    trial.measure(models["model"], models["dense model"])
    trial.leaves_no_setting()
    after = surroundings.of_process()
    for what, value in before.items():
        promise(bool(after[what] == value), f"{what} changed")
    for name, fresh in (("model", sparse_model(trial.family)), ("dense model", trial.dense())):
        changed = same(fresh.state_dict(), models[name].state_dict())
        promise(changed is None, f"{changed} of the {name} changed; a metric must not change it")
        promise(
            surroundings.of_model(models[name]) == own[name],
            f"gradients, dtypes or modes of the {name} changed",
        )
        promise(not surroundings.hooked(models[name], hooks[name]), f"hooks are left on the {name}")


def offline(trial: MetricTrial) -> None:
    with surroundings.no_network():
        trial.measure(sparse_model(trial.family))


def on_cuda(trial: MetricTrial) -> None:
    if not torch.cuda.is_available():
        raise NotApplicableError("torch sees no GPU")
    found = trial.measure(sparse_model(trial.family), device="cuda")
    for name, value in trial.figures.items():
        there = found.get(name, math.nan)
        # A GPU adds in another order, and a figure may be a count of near-ties.
        promise(
            math.isclose(there, value, rel_tol=0.02, abs_tol=1e-3),
            f"{name} is {value} on the CPU, {there} on the GPU",
        )


METRIC_PROMISES = (
    Promise("finite", "returns finite figures for a dense and for a pruned model", finite),
    Promise("shorter", "works if layers were removed", shorter),
    Promise("names", "returns the figures that it names", names),
    Promise("seed", "returns the same figures and notes for the same seed", seed),
    Promise(
        "looks", "leaves models, hooks, gradients, dtype, threads and TF32 as they are", looks_only
    ),
    Promise("json", "has options and notes that survive JSON, and notes that are short", notes),
    Promise("documented", "says what it is and what each option means", documented),
    Promise("offline", "needs no network", offline),
    Promise("cuda", "runs on CUDA too", on_cuda),
)
