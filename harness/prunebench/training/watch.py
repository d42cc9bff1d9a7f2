"""Tell those who wait how a training goes: loss, tokens per second, memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil
import torch

from prunebench.callbacks import ignore
from prunebench.training.objective import Objective, Says

SAY_EVERY_S = 1.0
LOG_EVERY_S = 30.0


@dataclass
class Watch:
    """Takes the steps of one training."""

    progress: Callable[[int, int], None] = ignore
    """Called with (done, total) after each optimiser step."""
    say: Callable[[str], None] = ignore
    """Called about once a second with a few words."""
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("prunebench"))
    """Gets the same words twice a minute."""
    _said: float = field(default=float("-inf"), init=False)
    _logged: float = field(default=float("-inf"), init=False)

    def __post_init__(self) -> None:
        self._began = time.monotonic()

    def stepped(
        self, done: int, total: int, loss: float, tokens: int, *, objective: Objective
    ) -> None:
        """``done`` of ``total`` steps are taken; ``tokens`` went through the model since the start.

        Of a training that was resumed, only those of this process.
        """
        self.progress(done, total)
        # Reading the memory of a process takes as long as a step of a tiny model.
        now = time.monotonic()
        if now - self._said < SAY_EVERY_S:
            return
        self._said = now
        words = [f"loss {loss:.4g}"]
        if isinstance(objective, Says):
            words.append(objective.says())
        words.append(f"{tokens / max(now - self._began, 1e-9):.0f} tokens/s")
        words.append(f"{memory_bytes(objective.device) / 1e9:.2f} GB")
        self.say(", ".join(words))
        if now - self._logged >= LOG_EVERY_S:
            self._logged = now
            self.log.info("training step %d of %d: %s", done, total, ", ".join(words))


def memory_bytes(device: torch.device) -> int:
    """The most that torch held on the GPU so far, or what this process has in host memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)
