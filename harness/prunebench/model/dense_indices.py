"""What is left of the dense model while it is cut, by the indices that units had there.

A method counts in the model as it is now: after layer 0 is removed, layer 3 is called 2. Every cut
goes through here, so that the record can name units as the dense model does, whatever the order of
the cuts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from prunebench.model.anatomy import Block
from prunebench.model.coupling.sub_block import KINDS


@dataclass
class DenseIndices:
    """Dense indices of the units that are left; methods take indices in the model as it is now."""

    layers: list[int]
    """Decoder layers, in their order."""
    groups: dict[Block, list[int]] = field(default_factory=dict)
    """KV groups or MLP channels of the blocks that lost some, by block in the dense model; none if
    the block was removed."""
    hidden: list[int] | None = None
    """Channels of the residual stream; None if all are left."""
    experts: dict[int, list[int]] = field(default_factory=dict)
    """Routed experts of the layers that lost some, by layer in the dense model."""

    def __post_init__(self) -> None:
        self.depth = len(self.layers)
        """Decoder layers of the dense model: nothing was cut when this object was made."""
        self.replaced: set[int] = set()
        """Those in whose place, and maybe that of others, there is something trained."""

    @property
    def removed_layers(self) -> list[int]:
        left = set(self.layers)
        return [layer for layer in range(self.depth) if layer not in left]

    def replace_layers(self, layers: range, *, blocks: bool) -> None:
        """Count what takes the place of these dense layers as the first of them.

        ``blocks``: whether it has an attention and an MLP.
        """
        self.remove_layers([now for now, dense in enumerate(self.layers) if dense in layers[1:]])
        if layers[0] not in self.layers:
            self.layers[:] = sorted([*self.layers, layers[0]])
        if not blocks:
            self.groups |= {Block(layers[0], kind): [] for kind in KINDS}
        self.replaced.add(layers[0])

    def remove_layers(self, layers: Collection[int]) -> None:
        # In place: whoever made this object may hold the same list.
        self.layers[:] = [dense for now, dense in enumerate(self.layers) if now not in layers]
        left = set(self.layers)
        self.groups = {block: kept for block, kept in self.groups.items() if block.layer in left}
        self.experts = {layer: kept for layer, kept in self.experts.items() if layer in left}

    def remove_blocks(self, blocks: Iterable[Block]) -> None:
        for block in blocks:
            self.groups[self._dense(block)] = []

    def keep_groups(self, kept: Mapping[Block, Sequence[int]]) -> None:
        for block, indices in kept.items():
            dense = self._dense(block)
            self.groups[dense] = _chosen(self.groups.get(dense), indices)

    def keep_hidden(self, kept: Sequence[int]) -> None:
        self.hidden = _chosen(self.hidden, kept)

    def keep_experts(self, kept: Mapping[int, Sequence[int]]) -> None:
        for layer, indices in kept.items():
            dense = self.layers[layer]
            self.experts[dense] = _chosen(self.experts.get(dense), indices)

    def _dense(self, block: Block) -> Block:
        return Block(self.layers[block.layer], block.kind)


def _chosen(present: list[int] | None, kept: Sequence[int]) -> list[int]:
    return list(kept) if present is None else [present[index] for index in kept]
