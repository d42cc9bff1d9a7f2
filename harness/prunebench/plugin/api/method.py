"""What a pruning method is: a class with a name, its options, and `prune`.

Nothing here imports torch, so that methods can be listed and their options checked without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from prunebench.plugin.api import options as shared
from prunebench.plugin.api.options import LayerwiseOptions

if TYPE_CHECKING:
    import torch

    from prunebench.layerwise.pruner import LinearStats
    from prunebench.layerwise.statistics import Statistic
    from prunebench.plugin.api.context import Context
    from prunebench.training.settings import TrainingSettings

Structure = Literal["none", "unstructured", "n:m", "layers", "blocks", "width", "experts"]


@dataclass(frozen=True)
class Reference:
    """Where a method was published."""

    title: str
    arxiv: str | None = None
    code: str | None = None


class Method(ABC):
    """A pruning method. Subclass it, set the class attributes, return the class from the hook.

    An instance exists only in its cell's process. `prune` changes the model in place, under
    `torch.no_grad()`; the harness measures the result itself.
    """

    name: ClassVar[str]
    reference: ClassVar[Reference | None] = None
    structure: ClassVar[frozenset[Structure]] = frozenset()
    needs_calibration: ClassVar[bool] = False
    uses_seed: ClassVar[bool] = False
    """Whether the result depends on the seed beyond the calibration sample."""
    published_calibration: ClassVar[Mapping[str, Any] | None] = None
    """The calibration of the paper, in the keys of a suite: ``{"corpus": "c4", "windows": 128,
    "length": 2048}``. `prunebench prune` uses it if nobody names a text."""
    trains: ClassVar[bool] = False
    """Whether `prune` trains weights, so that even a sparsity of 0 changes the model."""
    updates_kept_weights: ClassVar[bool] = False
    """Whether `prune` removes layers, blocks or width, and also changes linears that stay."""

    class Options(shared.Options):
        """Options of this method; override with your own subclass of `prunebench.Options`."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @classmethod
    def needs_calibration_for(cls, options: Any) -> bool:
        """Whether `prune` looks at calibration windows with these (parsed) options.

        By default `needs_calibration`. If no option can change that, set the attribute alone.
        """
        del options
        return cls.needs_calibration

    @classmethod
    def uses_seed_for(cls, options: Any) -> bool:
        """Whether the seed decides the result with these (parsed) options: see `uses_seed`.

        Settings that no seed can change are planned once, not for every seed of a suite.
        """
        del options
        return cls.uses_seed

    @classmethod
    def training_for(cls, options: Any, windows: int) -> TrainingSettings | None:
        """How `prune` trains on this number of windows, or None. ``options`` are parsed.

        `prunebench plan` counts the tokens of such a training.
        """
        del options, windows
        return None

    @classmethod
    def refuses_allocation(cls, options: Any) -> str | None:
        """Why an allocation makes no sense with these (parsed) options; None if it does.

        An allocation decides the sparsity of each linear.
        """
        del options
        return "it decides itself how much to remove from where"

    @classmethod
    def refuses_streaming(cls, options: Any) -> str | None:
        """Why these (parsed) options cannot prune a model layer by layer from its files, or None.

        A method that can must leave all work to `context.prune_linears` and look at no weight
        outside `prune_group`.
        """
        del options
        return "it looks at the model as a whole"

    @abstractmethod
    def prune(self, model: Any, context: Context) -> None:
        """Prune ``model`` (a transformers causal LM) in place.

        Raise `prunebench.PrunebenchError` for what the user can fix; other errors become a failed
        row too.
        """


class LayerwiseMethod(Method):
    """A method that prunes the linears of the decoder layer by layer, one shared input at a time.

    The harness walks the layers and gathers the ``statistics`` of each input behind pruned
    predecessors. It is a `prunebench.layerwise.pruner.GroupPruner`.
    """

    structure: ClassVar[frozenset[Structure]] = frozenset({"unstructured", "n:m"})
    statistics: ClassVar[frozenset[Statistic]] = frozenset()
    """What to gather: names of statistics in `prunebench.LinearStats`, or classes derived from
    `prunebench.InputStatistic`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.statistics:  # they are gathered on calibration text
            cls.needs_calibration = True

    @classmethod
    def refuses_allocation(cls, options: Any) -> str | None:
        """An allocation has the sparsity as its mean over all linears, so it needs all of them."""
        if getattr(options, "sparsity", None) is None:
            return "it has no option `sparsity`"
        if isinstance(options, LayerwiseOptions) and (options.layers or options.linears):
            return "`layers` and `linears` leave weights out that an allocation counts"
        return None

    @classmethod
    def refuses_streaming(cls, options: Any) -> str | None:
        """None: `prune` leaves the walk over the layers to the harness.

        Gradients are the exception: they take a backward pass of the whole model.
        """
        from prunebench.layerwise.statistics import GRADIENTS  # here, because it imports torch

        del options
        gradients = [name for name in GRADIENTS if name in cls.statistics]
        return f"its statistic `{gradients[0]}` takes the whole model" if gradients else None

    @property
    def true_sequential(self) -> bool:
        """Whether a layer runs again after each group of linears, so the next one sees it pruned."""
        return False

    def sparsity_of(self, stats: LinearStats) -> float | str:
        """The sparsity to prune this linear to: an allocation's, or else the option `sparsity`."""
        sparsity: float | str = self.options.sparsity if stats.sparsity is None else stats.sparsity
        return sparsity

    @abstractmethod
    def prune_group(self, weights: Sequence[torch.Tensor], stats: Sequence[LinearStats]) -> None:
        """Prune in place the weights, each [out, in], of one layer's linears that read one input.

        ``stats`` has one item for each weight, all with the same input statistics; `sparsity_of`
        says how much to remove from each. `LinearStats.naming` adds a linear's name to an error.
        """

    def prune(self, model: Any, context: Context) -> None:
        context.prune_linears(model, self)


class LinearMethod(LayerwiseMethod):
    """A method that scores the weights of each linear in the layers and zeroes the lowest."""

    group: ClassVar[Literal["row", "matrix"]] = "matrix"
    """Weights compete within an output row, or within the whole matrix."""

    Options: ClassVar[type[shared.Options]] = LayerwiseOptions  # type: ignore[assignment]

    @abstractmethod
    def score(self, weight: torch.Tensor, stats: LinearStats) -> torch.Tensor:
        """How much each weight matters, float32 [out, in]; the lowest are removed.

        weight: [out, in].
        """

    def mask(self, weight: torch.Tensor, stats: LinearStats) -> torch.Tensor:
        """True for the weights to remove, bool [out, in].

        By default exactly as many as `sparsity_of` says; of equal scores the lower index first.
        """
        from prunebench.layerwise.masks import lowest  # here, because it imports torch
        from prunebench.plugin.api.returned import check_score

        score = self.score(weight, stats)
        check_score(score, weight, self.score)
        return lowest(score, self.sparsity_of(stats), group=self.group, finite=True)

    def prune_linear(self, weight: torch.Tensor, stats: LinearStats) -> None:
        """Prune one weight matrix [out, in] in place. Override to update the survivors too."""
        from prunebench.model.zeros import set_to_zero  # here, because it imports torch
        from prunebench.plugin.api.returned import check_mask

        mask = self.mask(weight, stats)
        check_mask(mask, weight, self.mask)
        set_to_zero(weight, mask)

    def prune_group(self, weights: Sequence[torch.Tensor], stats: Sequence[LinearStats]) -> None:
        for weight, each in zip(weights, stats, strict=True):
            with each.naming():
                self.prune_linear(weight, each)
