"""What every allocation promises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from prunebench.plugin.api.allocation import allocate
from prunebench.plugin.api.context import Context
from prunebench.plugin.api.sparsity import share_of
from prunebench.plugin.suite_keys import ALLOCATION
from prunebench.testing import surroundings
from prunebench.testing.contexts import tiny_context
from prunebench.testing.models import tiny_model
from prunebench.testing.promises import Promise, Trial, as_json, close, documented, promise, same

if TYPE_CHECKING:
    from prunebench.plugin.api.allocation import Allocation


@dataclass(frozen=True)
class AllocationTrial(Trial):
    """One allocation with some options on one model family."""

    plugin: type[Allocation]
    family: str = "llama"
    options: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = 0.02
    """Allowed difference between the requested sparsity and the mean of the layers'."""

    def ready(self) -> None:
        """Divide a sparsity once. Raises what the allocation raises."""
        self.shares()

    def parsed(self) -> Any:
        return self.plugin.Options.model_validate(dict(self.options))

    def shares(self, sparsity: float = 0.5, seed: int = 0) -> dict[str, float]:
        """The share of each linear, by its path. Raises PrunebenchError if one is not valid."""
        return {path: share_of(each) for path, each in self.divided(sparsity, seed).items()}

    def divided(self, sparsity: float | str, seed: int = 0) -> dict[str, float | str]:
        """The sparsity of each linear, by its path. Raises PrunebenchError if one is not valid."""
        model = tiny_model(self.family)
        return self.allocate(model, sparsity, tiny_context(model, seed))

    def allocate(self, model: Any, sparsity: float | str, context: Context) -> dict[str, Any]:
        """The sparsity of each linear of ``model``, by its path."""
        plugin = self.plugin(self.parsed())
        with torch.no_grad(), surroundings.undone(plugin, "the allocation", self.flags):
            return allocate(plugin, model, sparsity, context)

    # Of a run of its own: `shares` returns what `allocate` returns, and the mean is in the notes.
    @cached_property
    def notes(self) -> dict[str, Any]:
        model = tiny_model(self.family)
        context = tiny_context(model)
        self.allocate(model, 0.5, context)
        return context.notes


def valid(trial: AllocationTrial) -> None:
    trial.shares()
    if trial.plugin.divides_patterns():
        trial.divided("4:8")


def mean(trial: AllocationTrial) -> None:
    found = float(trial.notes[ALLOCATION]["mean_share"])
    promise(
        close(found, 0.5, trial.tolerance),
        f"50% was asked for, the mean over the weights is {found:.1%}",
    )


def more(trial: AllocationTrial) -> None:
    less, most = (trial.shares(sparsity) for sparsity in (0.3, 0.6))
    promise(
        sum(less.values()) < sum(most.values()),
        "for a sparsity of 60% it removes no more than for 30%",
    )


def seed(trial: AllocationTrial) -> None:
    promise(trial.shares() == trial.shares(), "two runs with one seed differ")
    if not trial.plugin.uses_seed_for(trial.parsed()):
        promise(
            trial.shares() == trial.shares(seed=1),
            "another seed changes the result, but `uses_seed` is not set",
        )


def looks_only(trial: AllocationTrial) -> None:
    model = tiny_model(trial.family)
    hooks, before = surroundings.hooks(model), surroundings.of_process()
    trial.allocate(model, 0.5, tiny_context(model))
    changed = same(tiny_model(trial.family).state_dict(), model.state_dict())
    promise(changed is None, f"{changed} changed; an allocation must not change the model")
    trial.leaves_no_setting()
    promise(not surroundings.hooked(model, hooks), "hooks are left on the model")
    after = surroundings.of_process()
    for what, value in before.items():
        promise(bool(after[what] == value), f"{what} changed")


def offline(trial: AllocationTrial) -> None:
    with surroundings.no_network():
        trial.shares()


ALLOCATION_PROMISES = (
    Promise("valid", "gives every linear a sparsity between 0 and 1", valid),
    Promise("mean", "has the sparsity that is asked for as its mean", mean),
    Promise("more", "removes more when asked for more", more),
    Promise("seed", "gives the same result for the same seed", seed),
    Promise("looks", "leaves model, randomness, dtype, threads and TF32 as they are", looks_only),
    Promise("json", "has options and notes that survive JSON", as_json),
    Promise("documented", "says what it is and what each option means", documented),
    Promise("offline", "needs no network", offline),
)
