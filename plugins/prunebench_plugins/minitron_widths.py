"""The widths that all layers of a model share, and how many parameters a model of them has."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from prunebench import PrunebenchError

if TYPE_CHECKING:
    from prunebench import Anatomy


class Widths(NamedTuple):
    """What is the same in every layer, and how many layers there are."""

    hidden: int
    """Channels of the residual stream."""
    channels: int
    """Of an MLP."""
    groups: int
    """KV groups of an attention."""
    layers: int

    @classmethod
    def of(cls, parts: Anatomy) -> Self:
        """Those of a model. Raises PrunebenchError if its layers differ."""
        found = {
            kind: [parts.groups(layer, kind) for layer in parts.layers]
            for kind in ("attention", "mlp")
        }
        for kind, each in found.items():
            if len(set(each)) > 1 or 0 in each:
                other = next(
                    index for index, width in enumerate(each) if width != each[0] or not width
                )
                raise PrunebenchError(
                    f"layer {other}: the width of its {kind} is {each[other]}, and that of layer 0"
                    f" is {each[0]}",
                    hint="minitron keeps all layers alike; use llm-pruner or flap on this model",
                )
            # A layer whose sub-block cannot be cut says why.
            parts.cuts(parts.layers[0], kind)  # type: ignore[arg-type]
        hidden = int(parts.embeddings.weight.shape[1])
        return cls(hidden, found["mlp"][0], found["attention"][0], len(parts.layers))


class Parameters:
    """How many parameters a model has once its widths are others.

    Each tensor shrinks along its dimensions: those that are as long as the residual stream is
    wide, and those of the linears that belong to KV groups or MLP channels.
    """

    def __init__(self, parts: Anatomy, before: Widths) -> None:
        self._before = before
        inside: dict[int, tuple[int, str]] = {}  # by tensor: dimension, and what it is made of
        for layer in parts.layers:
            linears: Any = parts.linears(layer)
            for kind, width in (("attention", "groups"), ("mlp", "channels")):
                for cut in parts.cuts(layer, kind):  # type: ignore[arg-type]
                    linear = linears[cut.linear]
                    inside[id(linear.weight)] = cut.dim, width
                    if linear.bias is not None and cut.dim == 0:
                        inside[id(linear.bias)] = 0, width
        owned = {id(tensor) for layer in parts.layers for tensor in layer.parameters()}
        self._tensors = Counter(
            _Tensor(
                tuple(tensor.shape), *inside.get(id(tensor), (-1, "")), of_layer=id(tensor) in owned
            )
            for tensor in parts.model.parameters()
        )
        """Those alike are counted together."""

    def count(self, after: Widths) -> int:
        """Parameters of the model with these widths."""
        before, total = self._before, 0
        for tensor, alike in self._tensors.items():
            count = alike
            for at, size in enumerate(tensor.shape):
                if at == tensor.dim:
                    there, left = getattr(before, tensor.width), getattr(after, tensor.width)
                    count *= size // there * left
                elif size == before.hidden and tensor.follows_hidden(at):
                    count *= after.hidden
                else:
                    count *= size
            total += count * after.layers // before.layers if tensor.of_layer else count
        return total


class _Tensor(NamedTuple):
    shape: tuple[int, ...]
    dim: int
    """The dimension that is cut; -1 if none is."""
    width: str
    """The field of `Widths` that this dimension is a multiple of."""
    of_layer: bool

    def follows_hidden(self, at: int) -> bool:
        """Whether a dimension of the residual stream's length is that of the residual stream.

        The two dimensions of a cut linear are the cut one and the residual stream. Of other
        matrices, such as embeddings, only the last one is.
        """
        return self.dim >= 0 or at == len(self.shape) - 1


def shrunk(parts: Anatomy, before: Widths, ratio: float, multiple_of: int) -> Widths:
    """Residual and MLP channels times one factor, the largest that removes ``ratio``.

    Raises PrunebenchError if even the narrowest model has more parameters.
    """
    if ratio == 0:
        return before
    parameters = Parameters(parts, before)
    most = (1 - ratio) * parameters.count(before)

    def at(factor: float) -> Widths:
        hidden, channels = (
            max(1, int(factor * width / multiple_of)) * multiple_of
            for width in (before.hidden, before.channels)
        )
        return before._replace(
            hidden=min(hidden, before.hidden), channels=min(channels, before.channels)
        )

    # Every width between two multiples gives the same model: try the factors at which one changes.
    steps = {
        count * multiple_of / width
        for width in (before.hidden, before.channels)
        for count in range(1, width // multiple_of + 1)
    }
    for factor in sorted(steps, reverse=True):
        # A little more, because the product with the width must not fall below the multiple.
        if parameters.count(found := at(factor * (1 + 1e-12))) <= most:
            return found
    raise PrunebenchError(
        f"no residual stream and MLPs of a multiple of {multiple_of} channels remove {ratio:.0%}"
        " of the parameters",
        hint="lower `ratio` or `multiple_of`",
    )
