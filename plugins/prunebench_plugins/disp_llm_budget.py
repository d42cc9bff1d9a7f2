"""The five masks of each layer in DISP-LLM: their sizes, what they keep, and the final choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch

from prunebench import Block, PrunebenchError

if TYPE_CHECKING:
    from prunebench import Anatomy

Channels = dict[Block, list[int]]
PER_LAYER = 5
"""S1 to S5: what the attention reads and writes, what the MLP reads, its channels, what it writes."""


class LayerSizes(NamedTuple):
    """What the weights of one decoder layer depend on."""

    hidden: int
    """Channels of the residual stream."""
    inside: int
    """Channels of the MLP."""
    into_attention: int
    """Rows of queries, keys and values together, each as long as S1 is."""
    out_of_attention: int
    """Columns of the output projection, each as long as S2 is."""
    into_channel: int
    """Rows of the MLP's first linears for each of its channels: gate and up are two."""


class Chosen(NamedTuple):
    """The final masks."""

    masks: torch.Tensor
    """True for what stays, bool [masks one after the other]."""
    threshold: float
    """What stays is above it, and the best of each mask."""


@dataclass(frozen=True)
class Budget:
    """Counts the weights of the layers' linears that masks keep.

    Masks, gates and logits are vectors [sum of sizes], with the masks of all layers one after the
    other.
    """

    layers: tuple[LayerSizes, ...]

    @classmethod
    def of(cls, parts: Anatomy) -> Self:
        """Raises PrunebenchError that names the module if an MLP cannot be cut."""
        found: list[LayerSizes] = []
        hidden = int(parts.embeddings.weight.shape[1])
        for layer in parts.layers:
            rows: dict[str, tuple[int, int]] = {}
            inside = parts.groups(layer, "mlp")
            for kind, reader in (
                ("attention", parts.head_reader(layer)),
                ("mlp", parts.channel_reader(layer)),
            ):
                linears: Any = parts.linears(layer, kind)  # type: ignore[arg-type]
                if reader not in linears:
                    raise PrunebenchError(
                        f"layer {len(found)} has no {kind} that writes to the residual stream",
                        hint="use disp-llm on a model with all attentions and MLPs",
                    )
                columns = linears.pop(reader).weight.shape[1]
                rows[kind] = sum(each.weight.shape[0] for each in linears.values()), columns
            into = rows["mlp"][0] // inside
            # Layers may differ: the model may have been made narrower before.
            found.append(LayerSizes(hidden, inside, *rows["attention"], into))
        return cls(tuple(found))

    @property
    def sizes(self) -> list[int]:
        """Of each mask."""
        return [
            size
            for each in self.layers
            for size in (each.hidden, each.hidden, each.hidden, each.inside, each.hidden)
        ]

    @cached_property
    def _owner(self) -> torch.Tensor:
        """The mask of each entry, int64 [entries]."""
        sizes = torch.tensor(self.sizes)
        return torch.arange(len(sizes)).repeat_interleave(sizes)

    @cached_property
    def total(self) -> int:
        """Weights of the layers' linears."""
        return int(self._weights(torch.tensor(self.sizes)))

    def share(self, gates: torch.Tensor) -> torch.Tensor:
        """The share of the weights that gates of 0 and 1 keep, with a gradient, float32."""
        counts = gates.new_zeros(len(self.sizes)).index_add(
            0, self._owner.to(gates.device), gates
        )  # [masks]
        return self._weights(counts) / self.total

    def kept(self, masks: torch.Tensor) -> float:
        """The share of the weights that masks keep, bool [entries]; exact."""
        counts = torch.bincount(self._owner[masks], minlength=len(self.sizes))
        return int(self._weights(counts)) / self.total

    def _weights(self, counts: torch.Tensor) -> torch.Tensor:
        """How many weights stay if each mask keeps ``counts`` of its entries, int64 [masks]."""
        reads, writes, mlp_reads, inside, mlp_writes = counts.view(-1, PER_LAYER).unbind(1)
        sizes = torch.tensor(
            [each[2:] for each in self.layers], device=counts.device
        )  # [layers, 3]
        into, out, channel = sizes.to(counts.dtype).unbind(1)
        attention = reads * into + writes * out
        mlp = inside * (mlp_reads * channel + mlp_writes)
        return (attention + mlp).sum()

    def check(self, share: float) -> None:
        """Raise PrunebenchError if one entry of each mask is more than that share."""
        if self._weights(torch.ones(len(self.sizes), dtype=torch.int64)) > share * self.total:
            raise PrunebenchError(
                f"disp-llm: {share:.3%} of the weights are less than one channel for every attention"
                " and MLP to read and write",
                hint="lower `ratio`",
            )

    def at_least_one(self, scores: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """The masks, with the best entry of those that would keep none."""
        found = masks.clone()
        for mask, score in zip(
            torch.split(found, self.sizes), torch.split(scores, self.sizes), strict=True
        ):
            if not bool(mask.any()):
                mask[score.argmax()] = True
        return found

    def within(self, scores: torch.Tensor, share: float) -> Chosen:
        """The entries with the highest scores of all masks, as many as keep that share at most.

        One more would keep more. Each mask keeps one at least: see `check`.
        """
        # In whole weights, so that the count is exact; the small number is for rounding.
        limit = int(share * self.total + 1e-6)
        order = scores.argsort(descending=True, stable=True)
        # Counting a prefix of the order is enough: more entries never keep fewer weights.
        owner = self._owner[order]

        def fits(count: int) -> bool:
            counts = torch.bincount(owner[:count], minlength=len(self.sizes))
            return int(self._weights(counts.clamp_min(1))) <= limit

        low, high = 0, len(order) + 1  # `low` fits, `high` does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        masks = torch.zeros(len(order), dtype=torch.bool)
        masks[order[:low]] = True
        last = order[low] if low < len(order) else order[-1]
        return Chosen(self.at_least_one(scores, masks), float(scores[last]))

    def widths(self, masks: torch.Tensor) -> list[list[int]]:
        """How many entries of S1 to S5 stay in each layer."""
        counts = [int(mask.sum()) for mask in torch.split(masks, self.sizes)]
        return [counts[at : at + PER_LAYER] for at in range(0, len(counts), PER_LAYER)]


def blocks_of(budget: Budget, masks: torch.Tensor) -> tuple[Channels, Channels, Channels]:
    """The channels that sub-blocks read, those that they write, and those inside of MLPs."""
    reads: Channels = {}
    writes: Channels = {}
    inside: Channels = {}
    kept: Sequence[list[int]] = [
        mask.nonzero().flatten().tolist() for mask in torch.split(masks, budget.sizes)
    ]
    for layer in range(len(budget.layers)):
        attention, mlp = Block(layer, "attention"), Block(layer, "mlp")
        one, two, three, four, five = kept[PER_LAYER * layer : PER_LAYER * (layer + 1)]
        reads |= {attention: one, mlp: three}
        writes |= {attention: two, mlp: five}
        inside[mlp] = four
    return reads, writes, inside
