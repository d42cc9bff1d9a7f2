"""What is left of the dense model while it is cut, by the indices that units had there.

A method counts in the model as it is now: after layer 0 is removed, layer 3 is called 2. Every cut
goes through here, so that the record can name units as the dense model does, whatever the order of
the cuts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from prunebench.model.anatomy import Block


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

    def remove_layers(self, layers: Collection[int]) -> None:
        # In place: whoever made this object may hold the same list.
        self.layers[:] = [dense for now, dense in enumerate(self.layers) if now not in layers]
        left = set(self.layers)
        self.groups = {block: kept for block, kept in self.groups.items() if block.layer in left}

    def remove_blocks(self, blocks: Iterable[Block]) -> None:
        for block in blocks:
            self.groups[self._dense(block)] = []

    def keep_groups(self, kept: Mapping[Block, Sequence[int]]) -> None:
        for block, indices in kept.items():
            dense = self._dense(block)
            self.groups[dense] = _chosen(self.groups.get(dense), indices)

    def keep_hidden(self, kept: Sequence[int]) -> None:
        self.hidden = _chosen(self.hidden, kept)

    def _dense(self, block: Block) -> Block:
        return Block(self.layers[block.layer], block.kind)


def _chosen(present: list[int] | None, kept: Sequence[int]) -> list[int]:
    return list(kept) if present is None else [present[index] for index in kept]
