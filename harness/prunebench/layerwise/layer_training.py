"""What a method gets that trains the decoder layer by layer, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import nn

    from prunebench.layerwise.layer_run import LayerRun
    from prunebench.layerwise.pruner import LinearStats
    from prunebench.layerwise.statistics import Statistic


@dataclass(frozen=True)
class LayerTraining:
    """One decoder layer with its inputs and the outputs that it should give.

    Inputs are what the changed layers before it give. The weights are the dense ones, and must not
    change.
    """

    run: LayerRun
    linears: Mapping[str, nn.Linear]
    """The linears to prune, by their path in the layer, in forward order."""
    stats: Mapping[str, LinearStats]
    """The statistics of each of them, by the same paths."""
    targets: Sequence[torch.Tensor]
    """The dense layer's outputs for each batch; see `target`."""

    @property
    def index(self) -> int:
        """Index of the layer."""
        return self.run.index

    @property
    def path(self) -> str:
        """Path of the layer in the model."""
        return self.run.path

    @property
    def layer(self) -> nn.Module:
        """The layer itself, on the device where it computes."""
        return self.run.layer

    @property
    def batches(self) -> int:
        """Number of batches; their indices begin with 0."""
        return len(self.run.batches)

    def target(self, batch: int) -> torch.Tensor:
        """The dense layer's output, [windows of the batch, length, hidden]."""
        from prunebench.layerwise.device_moves import moved

        target: torch.Tensor = moved(self.targets[batch], self.run.device)
        return target

    def forward(self, batch: int, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The layer's output for a batch, [windows of the batch, length, hidden].

        ``weights``, each [out, in], replace those of some of `linears`, by the same paths.
        Gradients flow to them.
        """
        states, call = self.run.batches[batch]
        return self.run.forward(states, call, weights)


class LayerTrainer(Protocol):
    """What `LayerWalk.train` needs of a method."""

    @property
    def statistics(self) -> frozenset[Statistic]:
        """What to gather of each linear's input."""

    def train_layer(self, layer: LayerTraining) -> Mapping[str, torch.Tensor]:
        """Return new weights, each [out, in], of some of ``layer.linears``, by the same paths.

        Gradients are on.
        """

    def see_trained(self, layer: LayerTraining, target: torch.Tensor, output: torch.Tensor) -> None:
        """See a batch with the new weights: ``output`` is the input of the next layer.

        Both are [windows of the batch, length, hidden], on the device where the layer computes.
        """
