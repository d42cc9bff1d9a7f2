"""What every recovery promises, tried on a model whose smaller half of the weights is zero.

If it replaces layers, on one that lacks two layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from prunebench.measure.audit import dense_facts
from prunebench.plugin.api.context import Context
from prunebench.testing import surroundings
from prunebench.testing.contexts import tiny_context
from prunebench.testing.methods import finite, generates, saved
from prunebench.testing.models import tiny_calibration, tiny_model
from prunebench.testing.promises import Promise, Trial, as_json, documented, promise, repeats
from prunebench.testing.trial import Pruned, sparse_model

if TYPE_CHECKING:
    from prunebench.plugin.api.recovery import Recovery


@dataclass(frozen=True)
class RecoveryTrial(Trial):
    """One recovery with some options on one model family."""

    plugin: type[Recovery]
    family: str = "llama"
    options: Mapping[str, Any] = field(default_factory=dict)

    def ready(self) -> None:
        """Repair a model once. Raises what the recovery raises."""
        _ = self.pruned

    def parsed(self) -> Any:
        return self.plugin.Options.model_validate(dict(self.options))

    def model(self) -> Any:
        """What `recover` begins with."""
        return tiny_model(self.family) if self.plugin.replaces_layers else sparse_model(self.family)

    def recover(self, model: Any, seed: int = 0) -> Context:
        """Repair ``model`` in place, and reset modes and gradients as the harness does."""
        context = tiny_context(model, seed)
        if self.plugin.replaces_layers:
            context.remove_layers(model, [1, 2])
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seed)  # peft draws the LoRA matrices from the global generator
            plugin = self.plugin(self.parsed())
            with surroundings.undone(plugin, "the recovery", self.flags):
                plugin.recover(model, context)
        for parameter in model.eval().requires_grad_(requires_grad=False).parameters():
            parameter.grad = None
        return context

    @cached_property
    def pruned(self) -> Pruned:
        """The repaired model. Shared by all promises: do not change it."""
        model = self.model()
        facts = dense_facts(model)
        return Pruned(model, self.recover(model), facts)

    @property
    def notes(self) -> dict[str, Any]:
        return self.pruned.context.notes


def same_model(trial: RecoveryTrial) -> None:
    before, after = trial.model(), trial.pruned.model
    promise(
        type(before) is type(after),
        f"a {type(before).__name__} became a {type(after).__name__}",
    )
    if trial.plugin.replaces_layers:
        return  # what it puts in their place may have any shape
    shapes = [
        {name: value.shape for name, value in one.state_dict().items()} for one in (before, after)
    ]
    changed = sorted(
        name for name in {*shapes[0], *shapes[1]} if shapes[0].get(name) != shapes[1].get(name)
    )
    promise(not changed, f"{', '.join(changed[:3])} is new, is gone or has another shape")


def zeros(trial: RecoveryTrial) -> None:
    # Seeded, so this is the model that was repaired.
    before = Context(None, 0, []).linears(trial.model())
    for path, linear in trial.pruned.context.linears(trial.pruned.model).items():
        back = int((linear.weight[before[path].weight == 0] != 0).sum())
        promise(back == 0, f"{back} weights of {path} that were pruned are no longer zero")


def seed(trial: RecoveryTrial) -> None:
    again = trial.model()
    trial.recover(again)
    repeats(trial.pruned.state, again.state_dict())


def tidy(trial: RecoveryTrial) -> None:
    model = trial.model()
    hooks, before = surroundings.hooks(model), surroundings.of_process()
    context = trial.recover(model)
    after = surroundings.of_process()
    for what, value in before.items():
        if "random" not in what:  # the harness seeds again after a recovery
            promise(bool(after[what] == value), f"{what} changed")
    trial.leaves_no_setting()
    promise(not surroundings.hooked(model, hooks), "hooks are left on the model")
    promise(torch.equal(context.windows, tiny_calibration()), "the training tokens changed")


def offline(trial: RecoveryTrial) -> None:
    with surroundings.no_network():
        trial.recover(trial.model())


RECOVERY_PROMISES = (
    Promise("finite", "repairs, and logits stay finite", finite),
    Promise("model", "leaves the model's class and shapes as they are", same_model),
    Promise("zeros", "leaves zeros at zero", zeros),
    Promise("seed", "gives the same result for the same seed", seed),
    Promise("saved", "is the same after saving and loading", saved),
    Promise("generates", "generates the same tokens with a KV cache as without", generates),
    Promise("tidy", "leaves no hooks, dtype, threads or TF32 behind", tidy),
    Promise("json", "has options and notes that survive JSON", as_json),
    Promise("documented", "says what it is and what each option means", documented),
    Promise("offline", "needs no network", offline),
)
