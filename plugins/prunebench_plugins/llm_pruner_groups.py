"""LLM-Pruner's groups: what they consist of, and how many each attention and MLP loses.

Counts follow the rule of the released code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from prunebench import Anatomy, Block, Context
from prunebench_plugins.llm_pruner_scores import Member

RESIDUAL = "residual channels"
BISECTIONS = 40
"""Halvings of the interval from 0 to 1 in `ratio_for`: finer than one group of any model."""

Counts = Callable[[float], list[int]]
"""From a ratio to the number of groups that each pool loses."""


@dataclass(frozen=True)
class Pool:
    """Groups that compete: those of one attention or MLP, or all residual channels."""

    block: Block | None
    """None for the residual channels."""
    initial: int
    """Groups before the first step."""
    present: int
    """Groups now."""
    channels: int
    """Rows of the first weight that one group has: those of a head, or 1."""
    cost: int
    """Parameters of one group."""
    multiple: int = 1
    """The groups that stay are a multiple of this, if any go."""

    @property
    def key(self) -> str:
        return RESIDUAL if self.block is None else str(self.block)

    @property
    def name(self) -> str:
        if self.block is None:
            return RESIDUAL
        groups = "KV groups" if self.block.kind == "attention" else "MLP channels"
        return f"layer {self.block.layer}, {groups}"

    def removed(self, ratio: float) -> int:
        """How many groups to remove now, so that about ``ratio`` of the initial ones are removed.

        The released rule counts channels and rounds down to whole heads: a ratio of 0.25 removes
        none of 3 KV heads, and 0.6 removes 19 of 32. We use it throughout, so that counts agree
        with published models.
        """
        gone = self.present * self.channels - int(self.initial * self.channels * (1 - ratio))
        return self.rounded(max(0, gone) // self.channels)

    def rounded(self, gone: int) -> int:
        """The number to remove instead of ``gone``, so that a multiple stays, or all do."""
        if self.multiple == 1 or not gone:
            return gone
        # Nearest, not always down: then widths differ, and their sum stays what was asked for.
        kept = self.present - gone
        below = kept // self.multiple * self.multiple
        above = min(below + self.multiple, self.present)
        nearest = above if not below or above - kept <= kept - below else below
        return self.present - nearest

    def items(self, score: torch.Tensor) -> Items:
        """What can be removed together, lowest score first; at least one group stays.

        ``score``: [present groups]. With a multiple, runs of neighbours in the order of scores go
        together, and count by their mean.
        """
        order = score.argsort(stable=True)
        # Without a multiple each group is an item of its own: the same as it always was.
        if self.multiple == 1:
            free = order[:-1]
            return Items(order, score[free], torch.ones(len(free), dtype=torch.long))
        # What is more than a multiple goes first; then as many as leave one multiple. So every
        # prefix of the items leaves a multiple, or all.
        first = self.present % self.multiple if self.present > self.multiple else 0
        rest = max(0, self.present - first - self.multiple)
        values = [score[order[:first]].mean(0, keepdim=True)] if first else []
        values.append(score[order[first : first + rest]].view(-1, self.multiple).mean(1))
        sizes = [first] * bool(first) + [self.multiple] * (rest // self.multiple)
        return Items(order, torch.cat(values), torch.tensor(sizes, dtype=torch.long))


class Items(NamedTuple):
    """The groups of one pool as they may be removed: the first items, of so many groups each."""

    order: torch.Tensor
    """All groups, lowest score first, int64 [groups]."""
    values: torch.Tensor
    """Scores, ascending, [items]."""
    sizes: torch.Tensor
    """Groups of each item, int64 [items]."""


class Ranking:
    """The items of several pools, lowest score first; ties by pool."""

    def __init__(self, items: Sequence[Items], costs: Sequence[int] | None = None) -> None:
        """``costs``: parameters of a group of each pool; None counts groups."""
        sizes = torch.cat([each.sizes for each in items])
        owners = torch.cat([torch.full((len(i.sizes),), index) for index, i in enumerate(items)])
        # Values ascend in each pool, so what is taken of a pool are always its first items.
        order = torch.cat([each.values for each in items]).argsort(stable=True)
        self._pools = len(items)
        self._sizes, self._owners = sizes[order], owners[order]
        weights = self._sizes if costs is None else self._sizes * torch.tensor(costs)[self._owners]
        # [items + 1]: what goes with the 0, 1, 2, ... lowest items
        self._removed = torch.cat([torch.zeros(1, dtype=torch.long), weights.cumsum(0)])

    @property
    def most(self) -> int:
        """What all items are together."""
        return int(self._removed[-1])

    def lowest(self, wanted: float) -> list[int]:
        """How many groups of each pool go, if as many items go as come closest to ``wanted``."""
        count = int((self._removed - wanted).abs().argmin())
        gone = torch.zeros(self._pools, dtype=torch.long)
        found: list[int] = gone.index_add_(0, self._owners[:count], self._sizes[:count]).tolist()
        return found


def pool_of(
    parts: Anatomy, block: Block | None, initial: dict[str, int], multiple: int = 1
) -> Pool:
    """The pool of one attention or MLP, or of the residual channels (None).

    ``initial`` remembers, by the pool's key, the groups that were there at the first call. Channels
    that stay are a ``multiple``; KV groups are as many as they are.
    """
    if block is None:
        present = parts.embeddings.weight.shape[1]
        tensors = {id(tensor): tensor for tensor in _residual_tensors(parts)}
        cost = sum(tensor.numel() // present for tensor in tensors.values())
        return Pool(None, initial.setdefault(RESIDUAL, present), present, 1, cost, multiple)
    layer = parts.layers[block.layer]
    present = parts.groups(layer, block.kind)
    cost = 0
    # A group owns rows of the projections into the block, with their biases, and columns of the one
    # out of it, whose bias is everybody's.
    for cut in parts.cuts(layer, block.kind):
        linear: Any = layer.get_submodule(cut.linear)
        cost += linear.weight.numel() // present
        if cut.dim == 0 and linear.bias is not None:
            cost += linear.bias.numel() // present
    first = initial.setdefault(str(block), present)
    if block.kind == "mlp":
        return Pool(block, first, present, 1, cost, multiple)
    return Pool(block, first, present, parts.head_dim(layer), cost)


def cuttable(parts: Anatomy, blocks: Sequence[Block]) -> list[Block]:
    """Those of ``blocks`` whose groups can be removed one by one: not a mixture of experts.

    Raises PrunebenchError that names a module if none can.
    """
    found = [block for block in blocks if parts.can_cut(parts.layers[block.layer], block.kind)]
    if blocks and not found:
        parts.cuts(parts.layers[blocks[0].layer], blocks[0].kind)
    return found


def note_uncut(parts: Anatomy, blocks: Sequence[Block], context: Context) -> None:
    """Note and warn which of ``blocks`` stay as they are because their groups cannot be removed."""
    # What a method was not asked to prune is no loss, so only ``blocks`` count.
    uncut = [block for block in blocks if not parts.can_cut(parts.layers[block.layer], block.kind)]
    if not uncut:
        return
    # The first of them stands for all: most models have one reason, such as experts.
    found = parts.sub_block(parts.layers[uncut[0].layer], uncut[0].kind)
    context.notes["uncut"] = (
        f"{len(uncut)} of {len(blocks)} attentions and MLPs stay as they are; layer"
        f" {uncut[0].layer}: {found.no_cut if found else 'nobody knows its parts'}"
    )
    context.log.warning(context.notes["uncut"])


def members(parts: Anatomy, block: Block | None) -> Iterator[Member]:
    """The weights that lose rows or columns with a group, in a fixed order.

    ``block``: whose groups; None: the channels of the residual stream.
    """
    if block is not None:
        layer = parts.layers[block.layer]
        for cut in parts.cuts(layer, block.kind):
            linear: Any = layer.get_submodule(cut.linear)
            yield Member(
                f"layer {block.layer}, {cut.linear}",
                linear.weight,
                1 - cut.dim if _is_transposed(linear) else cut.dim,
                tuple(parts.stacked(layer, block.kind, cut)),
            )
        return
    seen: set[int] = set()
    for name, module, dim in _residual_modules(parts):
        if id(module.weight) not in seen:  # tied embeddings count once
            seen.add(id(module.weight))
            yield Member(name, module.weight, 1 - dim if _is_transposed(module) else dim)


def _is_transposed(module: Any) -> bool:
    """Whether a weight is stored as [in, out]: transformers' Conv1D."""
    known = isinstance(module, torch.nn.Linear | torch.nn.Embedding)
    return module.weight.dim() == 2 and not known


def _residual_modules(parts: Anatomy) -> Iterator[tuple[str, Any, int]]:
    """Modules that read (columns, 1), write (rows, 0) or scale the residual stream."""
    for name, module in parts.decoder.named_modules():
        if isinstance(module, torch.nn.Embedding):
            yield name, module, 1
    blocks = parts.blocks
    for index, layer in enumerate(parts.layers):
        for name, child in layer.named_children():
            weight = getattr(child, "weight", None)
            if weight is not None and weight.dim() == 1:
                yield f"layer {index}, {name}", child, 0
        for block in blocks:
            if block.layer == index:
                *into, out = parts.cuts(layer, block.kind)
                for cut in into:
                    yield f"layer {index}, {cut.linear}", layer.get_submodule(cut.linear), 1
                yield f"layer {index}, {out.linear}", layer.get_submodule(out.linear), 0
    if parts.final_norm is not None:
        yield "the final norm", parts.final_norm, 0
    yield "the output embeddings", parts.head, 1


def _residual_tensors(parts: Anatomy) -> Iterator[torch.Tensor]:
    """All tensors with a residual dimension, biases included; tied ones more than once."""
    for _, module, dim in _residual_modules(parts):
        yield module.weight
        bias = getattr(module, "bias", None)
        if dim == 0 and bias is not None:
            yield bias


def local_counts(pools: Sequence[Pool]) -> Counts:
    """Take the same share of the groups from every pool."""
    return lambda ratio: [pool.removed(ratio) for pool in pools]


def global_counts(
    pools: Sequence[Pool], scores: Sequence[torch.Tensor], *, released: bool
) -> Counts:
    """Let all groups compete by their raw scores; a KV group counts as much as an MLP channel.

    ``scores``: by pool, [present groups]. The best group of each pool is kept, and exactly the
    number asked for is removed, ties by index. ``released``: as in the published code, remove all
    groups that score as low as the last one to remove, and none from a pool that would lose all.
    """
    initial = sum(pool.initial for pool in pools)
    present = sum(pool.present for pool in pools)
    ranking = Ranking([pool.items(score) for pool, score in zip(pools, scores, strict=True)])
    values = torch.cat(list(scores)).sort().values

    def counts(ratio: float) -> list[int]:
        wanted = max(0, present - int(initial * (1 - ratio)))
        if wanted > (present if released else ranking.most):
            return [pool.present for pool in pools]
        if not released or not wanted:
            return ranking.lowest(wanted)
        # Their code compares with the score of the last group to remove, so that ties go, too.
        limit = values[wanted - 1]
        found = [int((score <= limit).sum()) for score in scores]
        return [
            0 if count == pool.present else pool.rounded(count)
            for count, pool in zip(found, pools, strict=True)
        ]

    return counts


def parameters_removed(pools: Sequence[Pool], counts: Sequence[int]) -> int:
    """Parameters removed by all steps, when each pool loses ``counts`` of its present groups."""
    gone = zip(pools, counts, strict=True)
    return sum(pool.cost * (pool.initial - pool.present + count) for pool, count in gone)


def emptied(pools: Sequence[Pool], counts: Sequence[int]) -> Pool | None:
    """The first pool that would lose all its groups."""
    return next(
        (pool for pool, count in zip(pools, counts, strict=True) if count >= pool.present), None
    )


def ratio_for(parameters: float, pools: Sequence[Pool], counts: Counts) -> float:
    """The ratio whose counts remove the number of parameters closest to ``parameters``."""
    # Bisection: the number removed grows with the ratio, in steps of whole groups.
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if parameters_removed(pools, counts(middle)) <= parameters:
            low = middle
        else:
            high = middle
    if emptied(pools, counts(high)) is not None:
        return low
    return min(
        (low, high), key=lambda ratio: abs(parameters_removed(pools, counts(ratio)) - parameters)
    )
