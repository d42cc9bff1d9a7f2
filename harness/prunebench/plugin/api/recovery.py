"""The base class of recoveries, which repair a pruned model, usually by training.

A suite names one beside a method's options. Nothing here imports torch, so that `prunebench
plugins` stays fast.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from prunebench.plugin.api import options
from prunebench.plugin.api.method import Reference
from prunebench.training.settings import TrainingSettings

if TYPE_CHECKING:
    from prunebench.plugin.api.context import Context


class TrainingOptions(options.Options, TrainingSettings):
    """Options that say how to train: subclass it to change defaults or to add options."""


class Recovery(ABC):
    """A repair of a pruned model: subclass it, and return it from `prunebench_register_recovery`.

    The instance lives in the process of the cell. It runs after pruning and before measuring.
    """

    name: ClassVar[str]
    reference: ClassVar[Reference | None] = None
    replaces_layers: ClassVar[bool] = False
    """Whether it puts something in the place of removed decoder layers, so that it makes no sense
    behind a method that removes none."""

    class Options(options.Options):
        """The recovery's options; replace it with your own subclass of `prunebench.Options`."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def recover(self, model: Any, context: Context) -> None:
        """Repair ``model``, a pruned transformers causal LM, in place; its class must not change.

        Gradients are on, and `context.windows` are the training windows. Weights that the method
        set to zero must stay zero (`context.zeros`). Raise `prunebench.PrunebenchError` for
        problems that the user can fix.
        """
