"""Which groups FLAP removes: by budget or by number, in one block or in all (arXiv:2312.11983)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch

from prunebench import PrunebenchError
from prunebench_plugins.llm_pruner_groups import Pool, Ranking

Structure = Literal["AL-AM", "AL-MM", "UL-MM", "UL-UM"]
Gone = list["torch.Tensor"]
"""True for the groups to remove, bool [groups], for each pool."""

RELEASED_HEAD = 128
"""Channels of a head in the released code, whatever the model's are."""
RELEASED_WEIGHT = 170
"""MLP channels that a head counts as there: 512 / 3, cut off because it is stored as an integer."""


class Amount(NamedTuple):
    """How much to remove."""

    structure: Structure
    ratio: float
    """Of the parameters of all pools."""
    heads: int
    """KV groups of the model, if the structure has a number of its own for them."""


def chosen(pools: Sequence[Pool], scores: Sequence[torch.Tensor], amount: Amount) -> Gone:
    """The groups to remove from each pool; of each at least the best one stays.

    ``scores``: float64 [groups], for each pool.
    """
    budget = amount.ratio * _parameters(pools)
    if amount.structure == "AL-AM":
        return lowest_of_all(pools, scores, budget=budget)
    if amount.structure == "UL-UM":
        return [
            lowest_of_all([pool], [score], count=int(pool.present * amount.ratio))[0]
            for pool, score in zip(pools, scores, strict=True)
        ]
    if amount.structure == "AL-MM":
        return _heads_and_channels(pools, scores, amount.heads, budget)
    # The same in every layer.
    layers = sorted({_layer(pool) for pool in pools})
    found: dict[int, torch.Tensor] = {}
    for layer in layers:
        some = [index for index, pool in enumerate(pools) if _layer(pool) == layer]
        mine = [pools[index] for index in some]
        gone = _heads_and_channels(
            mine,
            [scores[index] for index in some],
            amount.heads // len(layers),
            amount.ratio * _parameters(mine),
        )
        found |= dict(zip(some, gone, strict=True))
    return [found[index] for index in range(len(pools))]


def _heads_and_channels(
    pools: Sequence[Pool], scores: Sequence[torch.Tensor], heads: int, budget: float
) -> Gone:
    """The lowest KV groups, by their number, and MLP channels for what they leave of ``budget``."""
    found: dict[int, torch.Tensor] = {}
    for attention in (True, False):
        some = [index for index, pool in enumerate(pools) if _is_attention(pool) == attention]
        if some:
            mine = [pools[index] for index in some], [scores[index] for index in some]
            limit = {"count": heads} if attention else {"budget": max(0.0, budget)}
            gone = lowest_of_all(*mine, **limit)
            budget -= sum(
                pool.cost * int(each.sum()) for pool, each in zip(mine[0], gone, strict=True)
            )
            found |= dict(zip(some, gone, strict=True))
    return [found[index] for index in range(len(pools))]


def _parameters(pools: Sequence[Pool]) -> int:
    return sum(pool.cost * pool.present for pool in pools)


def _is_attention(pool: Pool) -> bool:
    return pool.block is not None and pool.block.kind == "attention"


def _layer(pool: Pool) -> int:
    return -1 if pool.block is None else pool.block.layer


def lowest_of_all(
    pools: Sequence[Pool],
    scores: Sequence[torch.Tensor],
    *,
    budget: float | None = None,
    count: int | None = None,
) -> Gone:
    """The lowest groups of all pools together: ``count``, or as many as come closest to ``budget``.

    ``budget`` is in parameters. Ties go by pool, then index. The best group of each pool stays.
    """
    items = [pool.items(score) for pool, score in zip(pools, scores, strict=True)]
    # A count is in groups, whatever they cost.
    costs = None if budget is None else [pool.cost for pool in pools]
    numbers = Ranking(items, costs).lowest((count if budget is None else budget) or 0)
    gone = [torch.zeros(len(score), dtype=torch.bool) for score in scores]
    for some, each, number in zip(gone, items, numbers, strict=True):
        some[each.order[:number]] = True
    return gone


def released(
    pools: Sequence[Pool], scores: Sequence[torch.Tensor], amount: Amount, hidden: int
) -> Gone:
    """The groups that the released code removes, in a model of ``hidden`` channels.

    Raises PrunebenchError if that code fails: it has 128 channels in each head, one query head for
    each KV head, and no rule for an amount that is not there.
    """
    for pool in pools:
        if _is_attention(pool) and (
            pool.channels != RELEASED_HEAD or pool.cost != 4 * RELEASED_HEAD * hidden
        ):
            raise PrunebenchError(
                f"{pool.name}: the released code takes heads of {RELEASED_HEAD} channels, each with"
                " keys of its own and no bias",
                hint="leave out `mode: reference`",
            )
    heads, channels = (
        torch.cat([s for p, s in zip(pools, scores, strict=True) if _is_attention(p) == kind])
        for kind in (True, False)
    )
    layers = len({_layer(pool) for pool in pools})
    # It counts the parameters of an attention as 4 * hidden^2, whatever its heads are.
    width = max(pool.present for pool in pools if not _is_attention(pool))
    layer = 3 * width * hidden + 4 * hidden**2
    head = 4 * hidden * RELEASED_HEAD
    if amount.structure == "AL-AM":
        limit = _released_threshold(heads, channels, amount.ratio)
        return [score <= limit for score in scores]
    if amount.structure == "AL-MM":
        most = int((layers * amount.ratio * layer - amount.heads * head) / (3 * hidden))
        limits = [_lowest(heads, amount.heads), _lowest(channels, most)]
        return [
            score <= limits[0 if _is_attention(pool) else 1]
            for pool, score in zip(pools, scores, strict=True)
        ]
    found = []
    for pool, score in zip(pools, scores, strict=True):
        number = int(amount.ratio * pool.present)
        if amount.structure == "UL-MM":
            number = amount.heads // layers
            if not _is_attention(pool):
                number = int((amount.ratio * layer - number * head) / (3 * hidden))
        # Here the group at the threshold stays: as many go as are below it.
        found.append(score < score.sort().values[_place(score, number)])
    return found


def _lowest(scores: torch.Tensor, number: int) -> float:
    """The ``number``-th lowest score."""
    return float(scores.sort().values[_place(scores, number - 1)]) if number else -float("inf")


def _place(scores: torch.Tensor, place: int) -> int:
    if 0 <= place < len(scores):
        return place
    raise PrunebenchError(
        f"the released code fails if {place} of {len(scores)} groups are to go",
        hint="change `ratio` or `remove_heads`, or leave out `mode: reference`",
    )


def _released_threshold(heads: torch.Tensor, channels: torch.Tensor, ratio: float) -> float:
    """The score up to which the released code removes the groups of all blocks (AL-AM)."""
    ordered, index = torch.cat([heads, channels]).sort(descending=True, stable=True)
    weight = torch.ones_like(index)
    weight[index < len(heads)] = RELEASED_WEIGHT
    kept = weight.cumsum(0)
    return float(ordered[int((kept - weight.sum() * (1 - ratio)).abs().argmin())])
