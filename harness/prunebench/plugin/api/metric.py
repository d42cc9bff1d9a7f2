"""What a metric is: it judges a pruned model beside perplexity and tasks. A suite names it under `quality.metrics`.

Nothing here imports torch, so that metrics can be listed and their options checked without it.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from prunebench.callbacks import ignore
from prunebench.errors import PrunebenchError
from prunebench.plugin.api import method
from prunebench.plugin.api.method import Reference

if TYPE_CHECKING:
    import torch


class Figure(NamedTuple):
    """One number that a metric gives."""

    unit: str
    """As it stands in tables, e.g. 'nats'; 'share' for what lies between 0 and 1, empty where there is none."""
    higher_is_better: bool


@dataclass
class MetricContext:
    """One metric's surroundings, valid while `Metric.measure` runs."""

    tokens: torch.Tensor | None
    """Token ids, int64 [windows, length], where the model takes them: the text to look at. None where none is asked for."""
    seed: int
    """The cell's; torch, numpy and random are seeded with it before each metric."""
    load_dense: Callable[[], Any]
    progress: Callable[[int, int], None] = ignore
    """Call with (done, total) to move the progress bar."""
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("prunebench"))

    @property
    def windows(self) -> torch.Tensor:
        """The text as token ids, int64 [windows, length], on the device where the model takes them.

        Raises PrunebenchError where the metric has none.
        """
        if self.tokens is None:
            raise PrunebenchError(
                "the metric asks for text and the cell has none for it",
                hint="set `needs_text = True` in the metric",
            )
        return self.tokens

    def dense(self) -> Any:
        """The dense model, in evaluation mode on the device of the pruned one; only to be looked at.

        Loaded when the first metric of a cell asks, and kept for the others: memory then holds two models. Raises
        PrunebenchError where there is no room for that; the metric is then not available.
        """
        return self.load_dense()


class Metric(ABC):
    """A figure of the pruned model's quality. Subclass it, and return the class from `prunebench_register_metric`.

    The instance lives in the cell's process only. It runs after perplexity and tasks, before anything is timed, and only
    looks: a cell whose metric changes a weight fails. An exception makes the metric's figures "not available".
    """

    name: ClassVar[str]
    unit: ClassVar[str] = ""
    """Of the figure that has the metric's own name, as in `Figure`."""
    higher_is_better: ClassVar[bool]
    figures: ClassVar[Mapping[str, Figure]] = {}
    """What `measure` gives beside it, by name."""
    needs_text: ClassVar[bool] = False
    """Whether it looks at `context.windows`: those of its own `data:`, else of the suite's first perplexity."""
    reference: ClassVar[Reference | None] = None

    class Options(method.Options):
        """Options of this metric; override with your own subclass of `prunebench.Options`."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def measure(
        self, model: Any, tokenizer: Any, context: MetricContext
    ) -> float | Mapping[str, float]:
        """The figure, or several by name: the metric's own name, those of ``figures``, others in the metric's own unit.

        ``model`` is a transformers causal LM in evaluation mode, under `torch.no_grad()`. NaN and infinity count as not
        available. Raise `prunebench.PrunebenchError` for what the user can mend.
        """
