"""What a pruning method is: a class with a name, its options, and `prune`.

Nothing here imports torch, so that methods can be listed and their options checked without it.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

if TYPE_CHECKING:
    import torch

    from prunebench.layerwise.walk import LinearStats
    from prunebench.plugin.api.context import Context

Structure = Literal["none", "unstructured", "n:m", "layers", "blocks", "width"]
Statistic = Literal["input_norm", "hessian"]


@dataclass(frozen=True)
class Reference:
    """Where a method was published."""

    title: str
    arxiv: str | None = None
    code: str | None = None


class Options(BaseModel):
    """Base of a method's options: immutable, unknown names are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Pattern(NamedTuple):
    """N:M sparsity in NVIDIA's reading: at most ``keep`` non-zeros in each aligned group of ``of`` inputs.

    SparseGPT and Wanda's code counts zeros instead; both agree on 2:4 and 4:8 and differ on 1:4.
    """

    keep: int
    of: int

    @property
    def sparsity(self) -> float:
        return 1 - self.keep / self.of

    def __str__(self) -> str:
        return f"{self.keep}:{self.of}"


def parse_sparsity(value: Any) -> float | str:
    """A share in [0, 1), 'N:M' with 0 < N < M, or N:M by name: {keep: 1, of: 4} is {zeros: 3, of: 4} is 1:4.

    Raises ValueError with the fix.
    """
    if isinstance(value, Mapping):
        return _named_pattern(value)
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+):(\d+)", value.strip())):
        keep, of = int(match[1]), int(match[2])
        if not 0 < keep < of:
            raise ValueError(f"{value}: N:M keeps N of every M weights, so 0 < N < M")
        return f"{keep}:{of}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is neither a share such as 0.5 nor a pattern such as 2:4")
    if not 0 <= value < 1:
        raise ValueError(
            f"{value} is out of range: a share of weights to remove is at least 0 and below 1"
        )
    return float(value)


def _named_pattern(value: Mapping[str, Any]) -> str:
    counts = set(value) - {"of"}
    if counts not in ({"keep"}, {"zeros"}) or "of" not in value:
        raise ValueError(
            f"{dict(value)}: name `of` and either `keep` or `zeros`, for example {{keep: 2, of: 4}}"
        )
    wrong = [
        name
        for name, count in value.items()
        if isinstance(count, bool) or not isinstance(count, int)
    ]
    if wrong:
        raise ValueError(f"{dict(value)}: {' and '.join(wrong)} must be whole numbers")
    of = value["of"]
    keep = value["keep"] if "keep" in value else of - value["zeros"]
    if not 0 < keep < of:
        raise ValueError(
            f"{dict(value)}: of every {of} weights at least one stays and at least one goes"
        )
    return f"{keep}:{of}"


Sparsity = Annotated[
    float | str,
    BeforeValidator(
        parse_sparsity,
        json_schema_input_type=float | str | dict[Literal["keep", "zeros", "of"], int],
    ),
    Field(
        description="share of weights set to zero, or N:M (N of every M inputs stay; also {keep: N, of: M}, {zeros: N, of: M})"
    ),
]


def pattern_of(sparsity: float | str) -> Pattern | None:
    """The N:M pattern that an already parsed sparsity names, if it names one."""
    if not isinstance(sparsity, str):
        return None
    keep, of = sparsity.split(":")
    return Pattern(int(keep), int(of))


class Method(ABC):
    """A pruning method. Subclass it, set the class attributes, and return the class from the registering hook.

    The instance lives in the cell's process only. ``prune`` changes the model in place, under `torch.no_grad()`;
    the harness measures the result itself.
    """

    name: ClassVar[str]
    reference: ClassVar[Reference | None] = None
    structure: ClassVar[frozenset[Structure]] = frozenset()
    needs_calibration: ClassVar[bool] = False
    uses_seed: ClassVar[bool] = False
    """Whether the outcome depends on the seed beyond the calibration sample."""
    trains: ClassVar[bool] = False
    """Whether `prune` trains weights, so that even a share of 0 changes the model."""

    class Options(Options):
        """Options of this method; override with your own subclass of `prunebench.Options`."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @classmethod
    def refuses_allocation(cls, options: Any) -> str | None:
        """Why an allocation makes no sense with these (parsed) options; None where it decides the share of each linear."""
        del options
        return "it decides itself how much goes from where"

    @classmethod
    def refuses_streaming(cls, options: Any) -> str | None:
        """Why these (parsed) options cannot prune a model layer by layer from its files; None where they can.

        A method that can leaves all work to `context.prune_linears`, and looks at no weight outside `prune_group`.
        """
        del options
        return "it looks at the model as a whole"

    @abstractmethod
    def prune(self, model: Any, context: Context) -> None:
        """Prune ``model`` (a transformers causal LM) in place.

        Raise `prunebench.PrunebenchError` for what the user can mend; anything else becomes a failed row too.
        """


class SparsityOptions(Options):
    """Options of a method that takes a share of the weights, or N:M."""

    sparsity: Sparsity = 0.5


class LayerwiseMethod(Method):
    """A method that prunes the linears of the decoder layer by layer, those that read the same input together.

    The harness walks the layers and taps the inputs that ``statistics`` asks for, behind pruned predecessors.
    """

    structure: ClassVar[frozenset[Structure]] = frozenset({"unstructured", "n:m"})
    statistics: ClassVar[frozenset[Statistic]] = frozenset()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.statistics:
            cls.needs_calibration = True

    @classmethod
    def refuses_allocation(cls, options: Any) -> str | None:
        """N:M leaves every matrix the same share; any other `sparsity` may differ from linear to linear."""
        sparsity = getattr(options, "sparsity", None)
        if sparsity is None:
            return "it has no option `sparsity`"
        return (
            f"{sparsity} takes the same share from every matrix" if pattern_of(sparsity) else None
        )

    @classmethod
    def refuses_streaming(cls, options: Any) -> str | None:
        """None: what `prune` leaves to the harness goes layer by layer."""
        return None if issubclass(cls, LayerwiseMethod) else super().refuses_streaming(options)

    @property
    def true_sequential(self) -> bool:
        """Whether a layer is run again after each group of linears, so that the next sees what was pruned in the layer."""
        return False

    @abstractmethod
    def prune_group(self, weights: Sequence[torch.Tensor], stats: Sequence[LinearStats]) -> None:
        """Prune in place the weights [out, in] of the linears of one layer that read the same input.

        ``stats`` has one item a weight, all with the same statistics; `LinearStats.naming` puts a linear's name in front
        of an error.
        """

    def prune(self, model: Any, context: Context) -> None:
        context.prune_linears(model, self)


class LinearMethod(LayerwiseMethod):
    """A method that scores the weights of every linear inside the decoder layers and zeroes the lowest."""

    group: ClassVar[Literal["row", "matrix"]] = "matrix"
    """Weights compete within an output row, or within the whole matrix."""

    Options: ClassVar[type[Options]] = SparsityOptions  # type: ignore[assignment]

    @abstractmethod
    def score(self, weight: torch.Tensor, stats: LinearStats) -> torch.Tensor:
        """How much each weight matters, float32. weight [out, in] -> [out, in]; the lowest go."""

    def mask(self, weight: torch.Tensor, stats: LinearStats) -> torch.Tensor:
        """True where a weight goes, [out, in]. By default exactly the share asked for, ties by index."""
        from prunebench.layerwise.masks import lowest

        return lowest(self.score(weight, stats), self.options.sparsity, group=self.group)

    def prune_linear(self, weight: torch.Tensor, stats: LinearStats) -> None:
        """Prune one weight matrix [out, in] in place. Override where survivors are updated too."""
        weight.masked_fill_(self.mask(weight, stats), 0)

    def prune_group(self, weights: Sequence[torch.Tensor], stats: Sequence[LinearStats]) -> None:
        for weight, each in zip(weights, stats, strict=True):
            with each.naming():
                self.prune_linear(weight, each)
