"""Validation on held-out windows: the loss over the steps, and the best weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from prunebench.training.objective import Objective
from prunebench.training.windows import TrainingWindows


class BestWeights:
    """Keeps the weights that had the lowest loss on the held-out ``windows``.

    The copy is in host memory and in the parameters' own type. Without ``keeps`` there is none.
    """

    def __init__(
        self,
        objective: Objective,
        parameters: Mapping[str, torch.Tensor],
        windows: TrainingWindows,
        batch_size: int,
        *,
        keeps: bool = True,
    ) -> None:
        self.losses: list[tuple[int, float]] = []
        """(optimiser steps done, mean loss) of each validation."""
        self.step: int | None = None
        """The step whose weights are kept; None if there are none."""
        self._objective = objective
        self._parameters = parameters
        self._windows = windows
        self._batch_size = batch_size
        self._keeps = keeps
        self._kept: dict[str, torch.Tensor] = {}
        self._lowest = math.inf

    def validate(self, step: int) -> None:
        """Measure the loss after ``step`` steps, and keep the weights if it is the lowest."""
        module = self._objective.module
        mode = module.training
        module.eval()  # without dropout
        try:
            loss = self._objective.mean(self._windows, self._batch_size)
        finally:
            module.train(mode)
        self.losses.append((step, loss))
        if self._keeps and loss < self._lowest:
            self._lowest, self.step = loss, step
            self._kept = {
                name: parameter.detach().to("cpu", copy=True)
                for name, parameter in self._parameters.items()
            }

    def restore(self) -> None:
        """Put the kept weights back."""
        # Not a decorator, which would import torch when plugins are listed.
        with torch.no_grad():
            for name, weight in self._kept.items():
                self._parameters[name].copy_(weight)

    def state(self) -> dict[str, Any]:
        """What `load` takes: numbers, and the kept weights."""
        return {
            "losses": [list(point) for point in self.losses],
            "step": self.step,
            "lowest": self._lowest,
            "kept": self._kept,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Keep what was kept when this state was taken."""
        self.losses = [(int(step), float(loss)) for step, loss in state["losses"]]
        self.step, self._lowest, self._kept = state["step"], state["lowest"], state["kept"]
