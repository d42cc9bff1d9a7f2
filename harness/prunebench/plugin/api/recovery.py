"""What a recovery is: it repairs a pruned model, usually by training. A suite names it beside a method's options.

Nothing here imports torch, so that recoveries can be listed and their options checked without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from prunebench.plugin.api import method
from prunebench.plugin.api.method import Reference
from prunebench.training.settings import TrainingSettings

if TYPE_CHECKING:
    from prunebench.plugin.api.context import Context


class TrainingOptions(method.Options, TrainingSettings):
    """How to train, as options of a plugin; override the defaults in your own subclass, and add to them."""


class Recovery(ABC):
    """A repair of a pruned model. Subclass it, and return the class from `prunebench_register_recovery`.

    The instance lives in the cell's process only. The harness runs it between pruning and measuring.
    """

    name: ClassVar[str]
    reference: ClassVar[Reference | None] = None

    class Options(method.Options):
        """Options of this recovery; override with your own subclass of `prunebench.Options`."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def recover(self, model: Any, context: Context) -> None:
        """Repair ``model`` (a pruned transformers causal LM) in place, so that it is of the same class afterwards.

        Runs under `torch.enable_grad()`; `context.windows` are the training windows. Weights that the method set to
        zero must stay zero (`context.zeros`). Raise `prunebench.PrunebenchError` for what the user can mend.
        """
