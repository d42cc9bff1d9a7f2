"""A plugin tried on one small seeded model: what a promise of the contract looks at."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError

from prunebench.measure.audit import DenseFacts, audit, dense_facts
from prunebench.model.anatomy import anatomy
from prunebench.model.checkpoint import parameter_count
from prunebench.plugin.api.context import Context
from prunebench.testing.models import tiny_calibration, tiny_model

if TYPE_CHECKING:
    from prunebench.plugin.api.method import Method
    from prunebench.record.audit import Audit

AMOUNTS: Mapping[str, tuple[Any, Any, Any]] = {
    "sparsity": (0.0, 0.25, 0.5),
    "ratio": (0.0, 0.25, 0.5),
    "count": (0, 1, 2),
}
"""Options that say how much goes, with nothing, less and more of it. The first that a method has is used."""


class BrokenPromiseError(AssertionError):
    """The plugin does not do what the contract says."""


class NotApplicableError(Exception):
    """A promise says nothing of this plugin, or cannot be tried here."""


def promise(kept: bool, message: str) -> None:
    """Raise BrokenPromiseError with ``message`` unless ``kept``."""
    if not kept:
        raise BrokenPromiseError(message)


@dataclass(frozen=True)
class Pruned:
    """A model after the method, and what the method left in its context."""

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
        return audit(self.model, self.dense, self.context.kept_layers, patterns)

    @property
    def gone(self) -> int:
        """Parameters that are no longer there, and those set to zero."""
        counted = self.audit()
        return self.dense.parameters - parameter_count(self.model) + counted.zeros

    def logits(self) -> torch.Tensor:
        """Of the calibration tokens, float32 [windows, length, vocabulary]."""
        with torch.no_grad():
            logits: torch.Tensor = self.model(tiny_calibration().to(self.model.device)).logits
        return logits


@dataclass(frozen=True)
class Trial:
    """One method with some options on one family; models are made anew for every pruning."""

    kind: type[Method]
    family: str = "llama"
    options: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = 0.02
    """Between the share asked for and the share measured: rounding in small matrices."""

    @cached_property
    def amount(self) -> str | None:
        """The option that says how much goes."""
        names = [name for name in AMOUNTS if name in self.options] or list(AMOUNTS)
        return next((name for name in names if name in self.kind.Options.model_fields), None)

    def asking(self, place: int) -> dict[str, Any]:
        """The option for nothing (0), less (1) or more (2). Raises NotApplicableError where no option says how much."""
        if self.amount is None:
            raise NotApplicableError(f"no option is called {', '.join(AMOUNTS)}")
        return {self.amount: AMOUNTS[self.amount][place]}

    def parsed(self, **changes: Any) -> Any:
        return self.kind.Options.model_validate({**self.options, **changes})

    def takes(self, **changes: Any) -> bool:
        """Whether the method's options allow this."""
        try:
            self.parsed(**changes)
        except ValidationError:
            return False
        return True

    def model(self) -> Any:
        return tiny_model(self.family)

    def prune(
        self, model: Any = None, *, seed: int = 0, device: str = "cpu", **changes: Any
    ) -> Pruned:
        """Prune ``model`` (a new one where absent) with the trial's options and ``changes``."""
        model = (self.model() if model is None else model).to(device)
        dense = dense_facts(model)
        context = Context(tiny_calibration(), seed, list(range(dense.layers)))
        with torch.no_grad():
            self.kind(self.parsed(**changes)).prune(model, context)
        return Pruned(model, context, dense)

    def dense_logits(self) -> torch.Tensor:
        """Of the calibration tokens, float32 [windows, length, vocabulary]."""
        model = self.model()
        return Pruned(model, Context(None, 0, []), dense_facts(model)).logits()

    @cached_property
    def pruned(self) -> Pruned:
        """The outcome of the trial's own options; not to be changed."""
        return self.prune()

    @property
    def notes(self) -> dict[str, Any]:
        return self.pruned.context.notes


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> str | None:
    """The name of the first tensor that differs in a bit, or that only one side has; None where all agree."""
    for name in (*one, *(name for name in other if name not in one)):
        if name not in one or name not in other or not torch.equal(one[name], other[name]):
            return name
    return None


def close(one: float, other: float, tolerance: float) -> bool:
    return math.isclose(one, other, rel_tol=0, abs_tol=tolerance)
