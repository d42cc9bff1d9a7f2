"""What budget-search can do with each attention and MLP: keep it, make it narrower, remove it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from prunebench import anatomy
from prunebench_plugins.flap_inputs import observe, reader_of, removed_mean
from prunebench_plugins.flap_scores import Metric, group_scores
from prunebench_plugins.llm_pruner_groups import pool_of

if TYPE_CHECKING:
    from prunebench import Anatomy, Block, Context


class Variant(NamedTuple):
    """One form of an attention or MLP."""

    groups: int
    """KV groups or MLP channels that it keeps; 0 if it is removed."""
    gone: torch.Tensor
    """True for the groups that it loses, bool [groups of the dense block]."""


class Item(NamedTuple):
    """An attention or MLP with all its variants."""

    block: Block
    variants: list[Variant]
    """The dense block first, then narrower ones; it may end with the removed block."""
    reader: str | None
    """Path in the layer of the linear that reads the groups; None if they cannot go one by one."""
    mean: torch.Tensor | None
    """Of this linear's inputs, float32 [in]; None if nothing makes up for removed groups."""

    @property
    def present(self) -> int:
        """Groups of the dense block."""
        return self.variants[0].groups

    def place(self, variant: Variant) -> int:
        """Its index in `variants`."""
        return [each.groups for each in self.variants].index(variant.groups)

    def bias(self, parts: Anatomy, variant: Variant) -> torch.Tensor | None:
        """What the groups that ``variant`` loses add on average, float32 [out].

        None if nothing makes up for them. The weight must be the dense one.
        """
        if self.mean is None or self.reader is None or variant.groups in {0, self.present}:
            return None
        linear = parts.linears(parts.layers[self.block.layer])[self.reader]
        return removed_mean(linear, self.mean, variant.gone)


class Widths(NamedTuple):
    """Which narrower variants there are."""

    attention: Sequence[float]
    """Shares of the KV groups to keep."""
    mlp: Sequence[float]
    """Shares of the MLP channels to keep."""
    multiple_of: int
    """MLP channels are rounded to a multiple of this."""

    def counts(self, kind: str, present: int) -> list[int]:
        """How many of ``present`` groups the narrower variants keep, descending."""
        # Kernels like widths that are multiples; a KV group has the width of its heads already.
        shares, unit = (self.attention, 1) if kind == "attention" else (self.mlp, self.multiple_of)
        found = {max(1, round(share * present / unit)) * unit for share in shares}
        return sorted((count for count in found if count < present), reverse=True)


def items_of(
    parts: Anatomy, context: Context, widths: Widths, metric: Metric, *, bias: bool
) -> list[Item]:
    """All attentions and MLPs that have variants, in forward order.

    FLAP's scores say which groups a narrower one keeps; it takes one pass of the decoder.
    """
    blocks = parts.blocks
    cuttable = [block for block in blocks if parts.can_cut(parts.layers[block.layer], block.kind)]
    pools = [pool_of(parts, block, {}) for block in cuttable]
    metrics, means = observe(parts, pools, context, metric) if pools else ([], [])
    scores = {
        block: group_scores(each, pool.present, standardised=False)
        for block, pool, each in zip(cuttable, pools, metrics, strict=True)
    }
    mean = dict(zip(cuttable, means, strict=True))
    items = []
    for block in blocks:
        score = scores.get(block, torch.zeros(1, dtype=torch.float64))
        counts = [len(score), *(widths.counts(block.kind, len(score)) if block in scores else ())]
        found = parts.sub_block(parts.layers[block.layer], block.kind)
        if found is not None and found.no_removal is None:
            counts.append(0)
        if len(counts) > 1:
            order = score.argsort(stable=True)  # of equal scores the earlier group goes
            variants = [Variant(count, _lowest(order, len(score) - count)) for count in counts]
            reader = reader_of(parts, block) if block in scores else None
            items.append(Item(block, variants, reader, mean.get(block) if bias else None))
    return items


def _lowest(order: torch.Tensor, count: int) -> torch.Tensor:
    gone = torch.zeros(len(order), dtype=torch.bool)
    gone[order[:count]] = True
    return gone


def make(
    model: Any, context: Context, items: Sequence[Item], choice: Mapping[Block, Variant]
) -> None:
    """Give the model these variants of its blocks."""
    parts = anatomy(model)
    biases, kept, gone = {}, {}, []
    for item in items:
        variant = choice[item.block]
        if variant.groups == 0:
            gone.append(item.block)
        elif variant.groups < item.present:
            kept[item.block] = (~variant.gone).nonzero().flatten().tolist()
            bias = item.bias(parts, variant)
            if bias is not None:
                biases[f"{parts.layers_path}.{item.block.layer}.{item.reader}"] = bias
    if biases:
        context.add_biases(model, biases)
    if kept:
        context.keep_groups(model, kept)
    if gone:  # last: it removes layers, after which others have other indices
        context.remove_blocks(model, gone)
