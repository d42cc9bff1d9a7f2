"""What a method is given beside the model: calibration tokens, randomness, and the harness's tools."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from prunebench.calibration import driver
from prunebench.errors import PrunebenchError
from prunebench.model.anatomy import anatomy
from prunebench.model.surgery import remove_layers

if TYPE_CHECKING:
    from prunebench.plugin.method import LinearMethod


def _ignore(_done: int, _total: int) -> None:
    """No one watches."""


@dataclass
class Context:
    """One cell's surroundings, valid while `Method.prune` runs."""

    calibration: torch.Tensor | None
    """Token ids, int64 [windows, length]; None where the method asks for no calibration."""
    seed: int
    kept_layers: list[int]
    """Indices, in the dense model, of the decoder layers that are still there."""
    progress: Callable[[int, int], None] = _ignore
    """Call with (done, total) to move the progress bar."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What the method wants to have on the record, as JSON values."""
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("prunebench"))

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        """Randomness on the CPU, seeded by the cell."""

    @property
    def windows(self) -> torch.Tensor:
        """The calibration tokens, int64 [windows, length]. Raises PrunebenchError where the cell has none."""
        if self.calibration is None:
            raise PrunebenchError(
                "the method asks for calibration tokens and the cell has none",
                hint="set `needs_calibration = True` in the method, and `calibration:` in the suite",
            )
        return self.calibration

    def prune_linears(self, model: Any, method: LinearMethod) -> None:
        """Prune every linear of every decoder layer, predecessors pruned before their successors are measured."""
        tokens = self.windows if method.statistics else None
        driver.prune_linears(model, method, tokens, self.generator, self.progress)

    def observe_layers(self, model: Any, see: Callable[[int, torch.Tensor, torch.Tensor], None]) -> None:
        """Run the dense decoder over the calibration windows and call ``see(layer, before, after)`` for each layer.

        before, after: hidden states [windows of the batch, length, hidden], as the layer gets and gives them, so
        that the last layer's output has not passed the final norm.
        """
        driver.observe_layers(model, self.windows, see, self.progress)

    def remove_layers(self, model: Any, layers: Iterable[int]) -> None:
        """Take these decoder layers (current indices) out of the model for good."""
        gone = set(layers)
        if len(gone) >= len(anatomy(model).layers):
            raise PrunebenchError(
                f"all {len(gone)} layers would be removed", hint="ask for a smaller share, so that one layer stays"
            )
        remove_layers(model, gone)
        self.kept_layers[:] = [kept for index, kept in enumerate(self.kept_layers) if index not in gone]
