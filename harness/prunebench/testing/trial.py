"""A method tried on one small seeded model: what the promises of methods look at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError

from prunebench.isolation.model_guard import first_not_finite
from prunebench.layerwise.masks import lowest
from prunebench.measure.audit import DenseFacts, audit, dense_facts
from prunebench.model.anatomy import anatomy
from prunebench.model.checkpoint import parameter_count
from prunebench.plugin.api.context import Context
from prunebench.plugin.asked import TOLERANCE
from prunebench.testing import surroundings
from prunebench.testing.models import tiny_calibration, tiny_model
from prunebench.testing.promises import NotApplicableError, Trial, promise

if TYPE_CHECKING:
    from prunebench.plugin.api.method import Method
    from prunebench.record.audit import Audit

AMOUNTS: Mapping[str, tuple[Any, Any, Any]] = {
    "sparsity": (0.0, 0.25, 0.5),
    "ratio": (0.0, 0.25, 0.5),
    "count": (0, 1, 2),  # tiny models have four layers
    "target_parameters": (0.0, 0.1, 0.25),
}
"""Options that say how much to remove, each with values for nothing, less and more.

`prunebench.plugin.asked` says what each of them means. Most promises try the first one that the
method has.
"""


def sparse_model(family: str) -> Any:
    """A tiny model in which exactly the smaller half of each prunable matrix is zero."""
    model = tiny_model(family)
    for linear in Context(None, 0, []).linears(model).values():
        linear.weight.masked_fill_(lowest(linear.weight.abs(), 0.5, group="matrix"), 0)
    return model


@dataclass(frozen=True)
class Pruned:
    """A model after pruning or repair, and the context that the plugin used."""

    model: Any
    context: Context
    dense: DenseFacts

    @property
    def state(self) -> dict[str, torch.Tensor]:
        return dict(self.model.state_dict())

    @property
    def layers(self) -> torch.nn.ModuleList:
        return anatomy(self.model).layers

    def audit(self, *patterns: tuple[int, int]) -> Audit:
        return audit(self.model, self.dense, self.context.dense_indices, patterns)

    @property
    def removed(self) -> int:
        """Parameters that are no longer there, plus those that are zero."""
        zeros = self.audit().zeros
        return self.dense.parameters - parameter_count(self.model) + zeros

    def logits(self) -> torch.Tensor:
        """Of the calibration tokens, float32 [windows, length, vocabulary]."""
        with torch.no_grad():
            logits: torch.Tensor = self.model(tiny_calibration().to(self.model.device)).logits
        return logits


@dataclass(frozen=True)
class MethodTrial(Trial):
    """One method with some options on one model family. Each pruning starts from a new model."""

    plugin: type[Method]
    family: str = "llama"
    options: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = TOLERANCE
    """Allowed difference between requested and measured sparsity: small matrices round."""

    def ready(self) -> None:
        """Prune once. Raises what the method raises, and if a weight has another type or is NaN."""
        dtype = self.model().dtype
        for name, weight in self.pruned.model.named_parameters():
            promise(weight.dtype == dtype, f"{name} became {weight.dtype}, it was {dtype}")
        bad = first_not_finite(self.pruned.model)
        promise(bad is None, f"{bad}: some weights are not finite")

    @cached_property
    def amount(self) -> str | None:
        """The option that says how much to remove."""
        names = [name for name in AMOUNTS if name in self.options] or list(AMOUNTS)
        return next((name for name in names if name in self.plugin.Options.model_fields), None)

    def asking(self, index: int) -> dict[str, Any]:
        """The option that asks for nothing (0), less (1) or more (2).

        Raises NotApplicableError if the method has no such option.
        """
        if self.amount is None:
            raise NotApplicableError(f"no option is called {', '.join(AMOUNTS)}")
        return {self.amount: AMOUNTS[self.amount][index]}

    def amounts(self, index: int) -> Iterator[dict[str, Any]]:
        """Every way to ask for less (1) or more (2): changes for `prune`."""
        for name, values in AMOUNTS.items():
            others = {other: None for other in AMOUNTS if other in self.options and other != name}
            changes = {**others, name: values[index]}
            if name in self.plugin.Options.model_fields and self.takes(**changes):
                yield changes

    def parsed(self, **changes: Any) -> Any:
        """The options; a change to None leaves an option out."""
        given = {**self.options, **changes}
        return self.plugin.Options.model_validate(
            {
                name: value
                for name, value in given.items()
                if name not in changes or value is not None
            }
        )

    def takes(self, **changes: Any) -> bool:
        """Whether the method's options allow these values."""
        try:
            self.parsed(**changes)
        except ValidationError:
            return False
        return True

    def model(self) -> Any:
        return tiny_model(self.family)

    def prune(
        self,
        model: Any = None,
        *,
        seed: int = 0,
        device: str = "cpu",
        shares: Mapping[str, float | str] | None = None,
        **changes: Any,
    ) -> Pruned:
        """Prune ``model``, by default a new one, with the trial's options and ``changes``.

        ``shares``: what an allocation gives each linear, by its path.
        """
        model = (self.model() if model is None else model).to(device)
        dense = dense_facts(model)
        context = Context(tiny_calibration(), seed, list(range(dense.layers)), shares=shares)
        plugin = self.plugin(self.parsed(**changes))
        with torch.no_grad(), surroundings.undone(plugin, "the method", self.flags):
            plugin.prune(model, context)
        return Pruned(model, context, dense)

    def dense_logits(self) -> torch.Tensor:
        """Of the calibration tokens, float32 [windows, length, vocabulary]."""
        model = self.model()
        return Pruned(model, Context(None, 0, []), dense_facts(model)).logits()

    @cached_property
    def pruned(self) -> Pruned:
        """The result of the trial's own options. Shared by all promises: do not change it."""
        return self.prune()

    @property
    def notes(self) -> dict[str, Any]:
        return self.pruned.context.notes
