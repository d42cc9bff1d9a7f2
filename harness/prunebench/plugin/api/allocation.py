"""What an allocation is: it decides the sparsity of each layer or linear for a method.

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
    """Divides a sparsity over the model: some layers or linears lose more, others less.

    Subclass it and return the class from `prunebench_register_allocation`. An instance exists only
    in its cell's process; it is asked once, before the method prunes the same model.
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

    @classmethod
    def needs_calibration_for(cls, options: Any) -> bool:
        """Whether it looks at calibration windows with these (parsed) options.

        By default `needs_calibration`.
        """
        del options
        return cls.needs_calibration

    @classmethod
    def uses_seed_for(cls, options: Any) -> bool:
        """Whether the seed decides the shares with these (parsed) options; default: `uses_seed`."""
        del options
        return cls.uses_seed

    @abstractmethod
    def shares(
        self, model: Any, sparsity: float, context: Context
    ) -> Sequence[float] | Mapping[str, float]:
        """The share of weights to remove, in [0, 1], from each decoder layer or from each linear.

        Return a sequence in the order of the layers, or a mapping from the paths in
        `context.linears`. ``sparsity`` is the mean over all weights to aim at. ``model``, a dense
        transformers causal LM, must not change. Raise `prunebench.PrunebenchError` for what the
        user can fix.
        """


def allocate(
    allocation: Allocation, model: Any, sparsity: float, context: Context
) -> dict[str, float]:
    """The share to remove from every prunable linear, by its path; the decision goes to the notes.

    Raises PrunebenchError if the allocation leaves out a linear, names an unknown one, or returns
    something that is no share.
    """
    linears = context.linears(model)
    given = allocation.shares(model, sparsity, context)
    shares = _by_path(allocation, given, model, list(linears))
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


def _by_path(
    allocation: Allocation,
    given: Sequence[float] | Mapping[str, float],
    model: Any,
    linears: Sequence[str],
) -> dict[str, float]:
    """What an allocation returned, as the share of each of these linears."""
    from prunebench.model.anatomy import anatomy

    if isinstance(given, Mapping):
        if wrong := sorted(set(linears) ^ set(given)):
            fault = "is left out" if wrong[0] in linears else "is no prunable linear"
            raise _nonsense(allocation, f"{wrong[0]} {fault}")
        return {path: float(share) for path, share in given.items()}
    parts = anatomy(model)
    if len(given) != len(parts.layers):
        raise _nonsense(
            allocation,
            f"{len(given)} shares are given, the model has {len(parts.layers)} decoder layers",
        )
    prefix = f"{parts.layers_path}."
    # "model.layers.3.mlp.up_proj": the layer's index follows the path of the layers
    layer_of = {path: int(path.removeprefix(prefix).partition(".")[0]) for path in linears}
    return {path: float(given[layer]) for path, layer in layer_of.items()}


def _nonsense(allocation: Allocation, message: str) -> PrunebenchError:
    return PrunebenchError(
        f"the allocation '{allocation.name}': {message}",
        hint="this is the allocation's mistake: tell its author",
    )
