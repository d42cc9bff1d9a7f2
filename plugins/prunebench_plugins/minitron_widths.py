"""The widths that all layers of a model share, and how many parameters a model of them has."""

from __future__ import annotations

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


def parameters(parts: Anatomy, before: Widths, after: Widths) -> int:
    """How many parameters the model has once its widths are ``after`` instead of ``before``.

    Each tensor shrinks along its dimensions: those that are as long as the residual stream is
    wide, and those of the linears that belong to KV groups or MLP channels.
    """
    inside: dict[int, tuple[int, int, int]] = {}  # by tensor: dimension, before, after
    for layer in parts.layers:
        for kind, there, left in (
            ("attention", before.groups, after.groups),
            ("mlp", before.channels, after.channels),
        ):
            for cut in parts.cuts(layer, kind):  # type: ignore[arg-type]
                linear: Any = parts.linears(layer)[cut.linear]
                inside[id(linear.weight)] = cut.dim, there, left
                if linear.bias is not None and cut.dim == 0:
                    inside[id(linear.bias)] = 0, there, left
    owned = {id(tensor) for layer in parts.layers for tensor in layer.parameters()}
    total = 0
    for tensor in parts.model.parameters():
        sizes = list(tensor.shape)
        dim, there, left = inside.get(id(tensor), (-1, 1, 1))
        for at, size in enumerate(sizes):
            if at == dim:
                sizes[at] = size // there * left
            elif size == before.hidden and _follows_hidden(tensor, at, dim):
                sizes[at] = after.hidden
        count = 1
        for size in sizes:
            count *= size
        total += count * after.layers // before.layers if id(tensor) in owned else count
    return total


def _follows_hidden(tensor: Any, at: int, dim: int) -> bool:
    """Whether a dimension of the residual stream's length is that of the residual stream.

    The two dimensions of a cut linear are the cut one and the residual stream. Of other matrices,
    such as embeddings, only the last one is.
    """
    return dim >= 0 or at == tensor.dim() - 1


def shrunk(parts: Anatomy, before: Widths, ratio: float, multiple_of: int) -> Widths:
    """Residual and MLP channels times one factor, the largest that removes ``ratio``.

    Raises PrunebenchError if even the narrowest model has more parameters.
    """
    if ratio == 0:
        return before
    most = (1 - ratio) * parameters(parts, before, before)

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
        if parameters(parts, before, found := at(factor * (1 + 1e-12))) <= most:
            return found
    raise PrunebenchError(
        f"no residual stream and MLPs of a multiple of {multiple_of} channels remove {ratio:.0%}"
        " of the parameters",
        hint="lower `ratio` or `multiple_of`",
    )
