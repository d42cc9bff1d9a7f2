"""What an allocation is: it decides the sparsity of each layer or linear for a method.

Nothing here imports torch, so that allocations can be listed and their options checked without it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from prunebench.errors import PrunebenchError
from prunebench.plugin.api import options
from prunebench.plugin.api.method import Reference
from prunebench.plugin.api.sparsity import Pattern, pattern_of, share_of
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
    published_calibration: ClassVar[Mapping[str, Any] | None] = None
    """As `Method.published_calibration`; for methods that read no text themselves."""

    class Options(options.Options):
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

    @classmethod
    def refuses_streaming(cls, options: Any) -> str | None:
        """Why these (parsed) options cannot look at a model layer by layer from its files, or None.

        An allocation that can must look at no weight outside `context.observe_linears`.
        """
        del options
        return None

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

    def keep(
        self, model: Any, pattern: Pattern, context: Context
    ) -> Sequence[int] | Mapping[str, int]:
        """How many of every M weights stay, 0 to M, in each decoder layer or in each linear.

        Override it if the allocation can divide N:M; it is then asked instead of `shares`.
        ``pattern`` has N as ``keep``, the mean to aim at, and M as ``of``. Return values as
        `shares` does.
        """
        raise NotImplementedError

    @classmethod
    def divides_patterns(cls) -> bool:
        """Whether `keep` is there, so that a method that prunes N:M can use the allocation."""
        return cls.keep is not Allocation.keep


def allocate(
    allocation: Allocation, model: Any, sparsity: float | str, context: Context
) -> dict[str, float | str]:
    """The sparsity of every prunable linear, by its path; the decision goes to the notes.

    It is a share if ``sparsity`` is one, otherwise a pattern with the same M. Raises
    PrunebenchError if the allocation leaves out a linear, names an unknown one, or returns
    something that is no sparsity.
    """
    linears = context.linears(model)
    pattern = pattern_of(sparsity)
    given: Sequence[float] | Mapping[str, float]
    if pattern is None:
        given = allocation.shares(model, float(sparsity), context)
    else:
        given = allocation.keep(model, pattern, context)
    decided = _checked(allocation, given, pattern)
    found = _by_path(allocation, decided, model, list(linears))
    sizes = {path: linear.weight.numel() for path, linear in linears.items()}
    zeros = sum(share_of(found[path]) * size for path, size in sizes.items())
    # 'shares' or 'patterns' if linears of a layer may differ, otherwise 'layer_shares' ...
    name = "shares" if pattern is None else "patterns"
    context.notes[ALLOCATION] = {
        "name": allocation.name,
        "mean_share": zeros / max(sum(sizes.values()), 1),
        (name if isinstance(given, Mapping) else f"layer_{name}"): decided,
    }
    return found


def _checked(
    allocation: Allocation,
    given: Sequence[float] | Mapping[str, float],
    pattern: Pattern | None,
) -> list[float | str] | dict[str, float | str]:
    """What an allocation returned, as sparsities: shares, or patterns like ``pattern``."""

    def sparsity(of_what: str, value: float) -> float | str:
        if pattern is None and math.isfinite(value) and 0 <= value <= 1:
            return float(value)
        if pattern is not None and value in range(pattern.of + 1):
            return str(Pattern(int(value), pattern.of))
        wrong = (
            f"gets {value}, which is no share between 0 and 1"
            if pattern is None
            else f"is to keep {value} of every {pattern.of} weights"
        )
        raise _nonsense(allocation, f"{of_what} {wrong}")

    if isinstance(given, Mapping):
        return {path: sparsity(path, value) for path, value in given.items()}
    return [sparsity(f"layer {index}", value) for index, value in enumerate(given)]


def _by_path(
    allocation: Allocation,
    given: Sequence[float | str] | Mapping[str, float | str],
    model: Any,
    linears: Sequence[str],
) -> dict[str, float | str]:
    """The sparsity of each of these linears."""
    from prunebench.model.anatomy import anatomy

    if isinstance(given, Mapping):
        if wrong := sorted(set(linears) ^ set(given)):
            fault = "is left out" if wrong[0] in linears else "is no prunable linear"
            raise _nonsense(allocation, f"{wrong[0]} {fault}")
        return dict(given)
    parts = anatomy(model)
    if len(given) != len(parts.layers):
        raise _nonsense(
            allocation,
            f"{len(given)} shares are given, the model has {len(parts.layers)} decoder layers",
        )
    prefix = f"{parts.layers_path}."
    # "model.layers.3.mlp.up_proj": the layer's index follows the path of the layers
    layer_of = {path: int(path.removeprefix(prefix).partition(".")[0]) for path in linears}
    return {path: given[layer] for path, layer in layer_of.items()}


def _nonsense(allocation: Allocation, message: str) -> PrunebenchError:
    return PrunebenchError(
        f"the allocation '{allocation.name}': {message}",
        hint="this is the allocation's mistake: tell its author",
    )
