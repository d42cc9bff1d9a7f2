"""Dynamic loss scaling for float16, with the constants of torch.amp.GradScaler.

The smallest number above zero in float16 is 6e-8. The gradient of a mean over many tokens is
smaller than that for most of its entries, so they would become zero. So the loss is multiplied by a
large factor before the backward pass, and the gradients are divided by it in float32 afterwards
(Micikevicius et al. 2018, arXiv:1710.03740, section 3.2). If a gradient overflows, the update is
skipped and the factor is halved; after many updates without an overflow it is doubled.
"""

from __future__ import annotations

from typing import Any

import torch

START = 2.0**16
GROW_AFTER = 2000
"""Updates without an overflow before the factor is doubled."""


class LossScale:
    """The factor for the loss of ``model``; always 1 if no parameter of it is float16."""

    def __init__(self, model: Any) -> None:
        half = any(parameter.dtype == torch.float16 for parameter in model.parameters())
        self.factor = START if half else 1.0
        self.overflows = 0
        """Updates that were skipped."""
        self._good = 0
        self._dynamic = half

    def updated(self) -> None:
        """Call after an update."""
        self._good += 1
        if self._dynamic and self._good == GROW_AFTER:
            self.factor *= 2
            self._good = 0

    def overflowed(self) -> bool:
        """Call after a gradient that is not finite. False if a smaller factor cannot help."""
        if self.factor <= 1:
            return False
        self.factor /= 2
        self._good = 0
        self.overflows += 1
        return True

    def state(self) -> dict[str, float]:
        """What `load` takes, as numbers."""
        return {"factor": self.factor, "overflows": self.overflows, "good": self._good}

    def load(self, state: dict[str, float]) -> None:
        """Be as the scale was that gave this state."""
        self.factor = state["factor"]
        self.overflows, self._good = int(state["overflows"]), int(state["good"])
