"""What every allocation promises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from prunebench.model.anatomy import anatomy
from prunebench.plugin.api.allocation import allocate
from prunebench.plugin.api.context import Context
from prunebench.plugin.suite_keys import ALLOCATION
from prunebench.testing import surroundings
from prunebench.testing.models import tiny_calibration, tiny_model
from prunebench.testing.promises import Promise, as_json, documented
from prunebench.testing.trial import close, promise, same

if TYPE_CHECKING:
    from prunebench.plugin.api.allocation import Allocation


@dataclass(frozen=True)
class AllocationTrial:
    """One allocation with some options on one family."""

    kind: type[Allocation]
    family: str = "llama"
    options: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = 0.02
    """Between the share asked for and the mean of those given."""

    def parsed(self) -> Any:
        return self.kind.Options.model_validate(dict(self.options))

    def context(self, model: Any, seed: int = 0) -> Context:
        return Context(tiny_calibration(), seed, list(range(len(anatomy(model).layers))))

    def shares(self, sparsity: float = 0.5, seed: int = 0) -> dict[str, float]:
        """By the linear's path. Raises PrunebenchError where they are no shares of a model."""
        model = tiny_model(self.family)
        with torch.no_grad():
            return allocate(self.kind(self.parsed()), model, sparsity, self.context(model, seed))

    @cached_property
    def notes(self) -> dict[str, Any]:
        model = tiny_model(self.family)
        context = self.context(model)
        with torch.no_grad():
            allocate(self.kind(self.parsed()), model, 0.5, context)
        return context.notes


def valid(trial: AllocationTrial) -> None:
    trial.shares()


def mean(trial: AllocationTrial) -> None:
    found = float(trial.notes[ALLOCATION]["mean_share"])
    promise(
        close(found, 0.5, trial.tolerance),
        f"50 % was asked for, the mean over the weights is {found:.1%}",
    )


def more(trial: AllocationTrial) -> None:
    less, most = (trial.shares(sparsity) for sparsity in (0.3, 0.6))
    promise(
        sum(less.values()) < sum(most.values()),
        "asked for 60 %, it does not remove more than asked for 30 %",
    )


def seed(trial: AllocationTrial) -> None:
    promise(trial.shares() == trial.shares(), "two runs with one seed differ")
    if not trial.kind.uses_seed:
        promise(
            trial.shares() == trial.shares(seed=1),
            "another seed changes the shares, yet `uses_seed` is not set",
        )


def looks_only(trial: AllocationTrial) -> None:
    model = tiny_model(trial.family)
    hooks, before = surroundings.hooks(model), surroundings.of_process()
    with torch.no_grad():
        allocate(trial.kind(trial.parsed()), model, 0.5, trial.context(model))
    changed = same(tiny_model(trial.family).state_dict(), model.state_dict())
    promise(changed is None, f"{changed} changed; an allocation only looks")
    promise(not surroundings.hooked(model, hooks), "hooks are left on the model")
    after = surroundings.of_process()
    for what, value in before.items():
        promise(bool(after[what] == value), f"{what} changed")


def offline(trial: AllocationTrial) -> None:
    with surroundings.no_network():
        trial.shares()


ALLOCATION_PROMISES = (
    Promise("valid", "gives every linear a share between 0 and 1", valid),
    Promise("mean", "spreads the share that is asked for", mean),
    Promise("more", "removes more when asked for more", more),
    Promise("seed", "gives the same shares for the same seed", seed),
    Promise("looks", "leaves model, randomness, dtype, threads and TF32 as they are", looks_only),
    Promise("json", "has options and notes that survive JSON", as_json),
    Promise("documented", "says what it is and what each option means", documented),
    Promise("offline", "needs no network", offline),
)
