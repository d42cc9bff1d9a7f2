"""What belongs together in an attention or MLP: values that a rule proposes and a proof keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Self

Kind = Literal["attention", "mlp"]
KINDS: tuple[Kind, ...] = ("attention", "mlp")


class Cut(NamedTuple):
    """A linear that loses rows (``dim`` 0) or columns (1) when a group of its sub-block is removed.

    ``parts``: 1 if a group owns consecutive rows; 2 if its rows lie in two halves, such as gate and
    up; 3 if all queries come first, then all keys, then all values. Each part is divided into runs
    of equal length, one for each group.
    """

    linear: str
    dim: int
    parts: Literal[1, 2, 3] = 1


class Answer(NamedTuple):
    """What a layer expects from an attention or MLP that was removed."""

    outputs: int = 0
    """Length of the tuple, with None after the first entry; 0 for a tensor."""
    position: int = -1
    """Of the argument to return, for a module that adds to the residual itself (Bloom); -1: none,
    or the one called ``name``."""
    name: str = ""
    full: bool = False
    """Whether zeros must have the residual's shape, because the layer adds to them in place."""


class Heads(NamedTuple):
    """The heads of one attention."""

    query: int
    keys: int
    dim: int
    """Channels of a head that the writer reads: of a head of values, if others differ."""


@dataclass(frozen=True)
class SubBlock:
    """One attention or MLP of a layer. All paths start at the layer."""

    kind: Kind
    modules: tuple[str, ...]
    """The modules to replace when the sub-block is removed; the last one adds to the residual."""
    norms: tuple[str, ...] = ()
    """The norms that only this sub-block needs: before it, and in some families after it."""
    answer: Answer = field(default_factory=Answer)
    """What its last module must return when it is removed."""
    readers: tuple[str, ...] = ()
    """The linears that read the residual stream."""
    writer: str | None = None
    """The linear that writes to the residual stream; None if experts do."""
    cuts: tuple[Cut, ...] = ()
    """What gets smaller with a KV group or an MLP channel; the last one is the writer."""
    vectors: tuple[str, ...] = ()
    """Parameters with entries for each head, in order of heads, that get smaller as well."""
    attributes: tuple[tuple[str, str], ...] = ()
    """(module, name) of numbers that shrink in proportion to the groups, such as `num_heads`."""
    own_config: bool = False
    """Whether the attention reads its number of heads from the config, and needs a copy of it."""
    heads: Heads | None = None
    """The heads of an attention before anything was cut; None for an MLP."""
    no_removal: str | None = None
    """Why the sub-block cannot be removed; None if the proof holds."""
    no_cut: str | None = None
    """Why its groups cannot be removed; None if the proof holds."""
    source: str = "rule"
    """Where the cuts come from: 'rule', 'plan' or the name of a family file."""


class _Shared:
    """Not copied with the model that it belongs to: it never changes."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


@dataclass(frozen=True)
class LayerCoupling(_Shared):
    """What is known of one layer."""

    blocks: dict[Kind, SubBlock]
    residual: tuple[tuple[str, int], ...] = ()
    """(parameter, dimension) of all that reads, scales or writes the residual stream."""
    parallel: bool = False
    """Whether the MLP does not depend on what the attention gives."""


@dataclass(frozen=True)
class Coupling(_Shared):
    """What is known of a model: its layers, and what its config can hold after they got smaller."""

    layers: tuple[LayerCoupling, ...]
    channels_field: str | None = None
    """The config's name for the number of MLP channels, if another number there is enough."""
    heads_in_config: bool = False
    """Whether other numbers of heads in the config are enough."""
    hidden_in_config: bool = False
    """Whether another width of the residual stream in the config is enough."""
    no_hidden: str | None = None
    """Why residual channels cannot be removed; None if the proof holds."""
