"""What one training did, and its summary for the record."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

CURVE_POINTS = 50
"""Points of a loss curve on the record: a long training must not make a long record."""


@dataclass(frozen=True)
class TrainingLog:
    """What one training did."""

    losses: list[float]
    """Mean loss of each step's batch before the step: of the next token in nats."""
    tokens: int
    """Tokens that went through the model, each as often as it was seen."""
    parameters: int
    """Number of trained parameters, masked ones included."""
    seconds: float
    """Together with those of an earlier process, if it was resumed."""
    overflows: int = 0
    """Updates that were skipped because a float16 gradient overflowed; then the batch is repeated
    with half the loss scale."""
    validation: list[tuple[int, float]] = field(default_factory=list)
    """(steps done, mean loss of the held-out windows)."""
    best_step: int | None = None
    """The step whose weights were kept; None without validation: the last one."""
    resumed_after: int | None = None
    """The steps that an earlier process took, which was killed; None if it was not."""

    @property
    def notes(self) -> dict[str, Any]:
        """A summary as JSON values."""
        steps = [(step, loss) for step, loss in enumerate(self.losses, start=1)]
        notes: dict[str, Any] = {
            "steps": len(self.losses),
            "first_loss": self.losses[0],
            "last_loss": self.losses[-1],
            "trained_parameters": self.parameters,
            "seconds": round(self.seconds, 3),
            "loss_curve": _curve(steps),
        }
        if self.resumed_after is not None:
            notes["resumed_after_step"] = self.resumed_after
        if self.overflows:
            notes["skipped_updates"] = self.overflows
        if self.validation:
            notes["validation_curve"] = _curve(self.validation)
            notes["best_step"] = self.best_step
            notes["best_validation_loss"] = min(loss for _, loss in self.validation)
        return notes


def _curve(points: list[tuple[int, float]]) -> list[list[float]]:
    """At most `CURVE_POINTS` of the points [step, loss], evenly spread, the last one among them."""
    stride = -(-len(points) // CURVE_POINTS)
    return [[step, round(loss, 6)] for step, loss in points[::-1][::stride][::-1]]
