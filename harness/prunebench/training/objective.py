"""What a training makes smaller: the loss of some windows, and its gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from prunebench.training.loss import mean_loss, next_token_backward

if TYPE_CHECKING:
    import torch

    from prunebench.training.windows import TrainingWindows


class Objective(Protocol):
    """A loss that is a mean over the targets of windows."""

    @property
    def module(self) -> torch.nn.Module:
        """What learns: it is in training mode during a step, and in its own mode otherwise."""

    @property
    def device(self) -> torch.device:
        """Where the windows are wanted."""

    def targets(self, windows: TrainingWindows) -> int:
        """How many targets the loss of these windows is a mean over."""

    def backward(self, windows: TrainingWindows, weight: float) -> float:
        """Add the gradients of ``weight`` times the sum over the targets, and return that sum."""

    def mean(self, windows: TrainingWindows, batch_size: int) -> float:
        """The loss, without gradients, ``batch_size`` windows at a time."""


@runtime_checkable
class Remembers(Protocol):
    """An objective that has more to take up again than the weights of its module."""

    def state(self) -> dict[str, Any]:
        """Tensors and plain values, for `load`."""

    def load(self, state: dict[str, Any]) -> None:
        """Go on as the objective would that gave this state."""


@runtime_checkable
class Says(Protocol):
    """An objective that has something to say besides its loss."""

    def says(self) -> str:
        """How the last step went, in a few words."""


@dataclass(frozen=True)
class NextToken:
    """Cross-entropy of the next token, in nats."""

    module: Any
    """A causal LM."""

    @property
    def device(self) -> torch.device:
        device: torch.device = self.module.get_input_embeddings().weight.device
        return device

    def targets(self, windows: TrainingWindows) -> int:
        return windows.targets

    def backward(self, windows: TrainingWindows, weight: float) -> float:
        return next_token_backward(self.module, windows.tokens, weight, windows.counted)

    def mean(self, windows: TrainingWindows, batch_size: int) -> float:
        return mean_loss(self.module, windows, batch_size)
