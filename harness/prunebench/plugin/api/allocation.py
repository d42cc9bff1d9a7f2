"""What an allocation is: it says how much goes from where, for a method that takes a share of the weights.

Nothing here imports torch, so that allocations can be listed and their options checked without it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from prunebench.errors import PrunebenchError
from prunebench.plugin.api import method
from prunebench.plugin.api.method import Reference
from prunebench.plugin.suite_keys import ALLOCATION

if TYPE_CHECKING:
    from prunebench.plugin.api.context import Context


class Allocation(ABC):
    """How a share is spread over the model. Subclass it, and return the class from `prunebench_register_allocation`.

    The instance lives in the cell's process only. The harness asks it once, before the method prunes the same model.
    """

    name: ClassVar[str]
    reference: ClassVar[Reference | None] = None
    needs_calibration: ClassVar[bool] = False
    uses_seed: ClassVar[bool] = False
    """Whether the shares depend on the seed beyond the calibration sample."""

    class Options(method.Options):
        """Options of this allocation; override with your own subclass of `prunebench.Options`."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def shares(
        self, model: Any, sparsity: float, context: Context
    ) -> Sequence[float] | Mapping[str, float]:
        """The share of zeros in [0, 1] for each decoder layer, in order, or for each linear, by its path in `context.linears`.

        ``model`` (a dense transformers causal LM) must stay as it is; ``sparsity`` is the mean over the weights to aim
        at. Raise `prunebench.PrunebenchError` for what the user can mend.
        """


def allocate(
    allocation: Allocation, model: Any, sparsity: float, context: Context
) -> dict[str, float]:
    """The share of every prunable linear, by its path; what was decided goes to the notes.

    Raises PrunebenchError where the allocation leaves a linear out, names one that is not there, or gives no share.
    """
    linears = context.linears(model)
    given = allocation.shares(model, sparsity, context)
    if isinstance(given, Mapping):
        shares = {path: float(share) for path, share in given.items()}
        wrong = sorted(set(linears) ^ set(shares))
        if wrong:
            raise _nonsense(
                allocation,
                f"{wrong[0]} is {'left out' if wrong[0] in linears else 'no prunable linear'}",
            )
    else:
        layers = len(context.kept_layers)
        if len(given) != layers:
            raise _nonsense(
                allocation, f"{len(given)} shares are given, the model has {layers} decoder layers"
            )
        shares = {path: float(given[layer]) for layer, path in _by_layer(model, linears)}
    for path, share in shares.items():
        if not (math.isfinite(share) and 0 <= share <= 1):
            raise _nonsense(allocation, f"{path} gets {share}, which is no share between 0 and 1")
    sizes = {path: linear.weight.numel() for path, linear in linears.items()}
    mean = sum(shares[path] * size for path, size in sizes.items()) / max(sum(sizes.values()), 1)
    context.notes[ALLOCATION] = {
        "name": allocation.name,
        "mean_share": mean,
        **(
            {"shares": shares}
            if isinstance(given, Mapping)
            else {"layer_shares": [float(share) for share in given]}
        ),
    }
    return shares


def _by_layer(model: Any, linears: Mapping[str, Any]) -> list[tuple[int, str]]:
    from prunebench.model.anatomy import anatomy

    prefix = f"{anatomy(model).layers_path}."
    return [(int(path.removeprefix(prefix).partition(".")[0]), path) for path in linears]


def _nonsense(allocation: Allocation, message: str) -> PrunebenchError:
    return PrunebenchError(
        f"the allocation '{allocation.name}': {message}",
        hint="this is the allocation's mistake: tell its author",
    )
