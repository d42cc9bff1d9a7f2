"""From scores to sparsities: distribute the weights that stay, with a limit for each group."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from prunebench import PrunebenchError


def distribute(
    scores: Sequence[float], sizes: Sequence[int], sparsity: float, most: float
) -> list[float]:
    """The sparsity of each group, at most ``most``; int(total * (1 - sparsity)) weights stay.

    Every group first keeps what ``most`` demands. The rest is distributed in proportion to the
    scores; a group that is full gives what it cannot take to the others. ``sizes``: weights of each
    group. If ``most`` is the sparsity, the groups are rounded up and up to one weight more of each
    stays.
    """
    # Without the subtraction 100 * (1 - 0.7) is 30.000000000000004, and rounded up 31.
    kept = [math.ceil(size * (1 - most) - 1e-6) for size in sizes]
    rest = int(sum(sizes) * (1 - sparsity)) - sum(kept)
    active = list(range(len(sizes)))
    while rest > 0 and active:
        weights = [scores[i] for i in active]
        if not any(weights):  # they are all alike: by the room that they have
            weights = [float(sizes[i] - kept[i]) for i in active]
        total = math.fsum(weights)
        exact = {i: rest * (w / total) for i, w in zip(active, weights, strict=True)}
        full = [i for i in active if kept[i] + exact[i] >= sizes[i]]
        for i in full:
            rest -= sizes[i] - kept[i]
            kept[i] = sizes[i]
        active = [i for i in active if i not in full]
        if not full:
            _round(kept, exact, rest)
            break
    return [1 - keep / size for keep, size in zip(kept, sizes, strict=True)]


def _round(kept: list[int], exact: dict[int, float], rest: int) -> None:
    """Add whole numbers next to ``exact`` to ``kept``, ``rest`` in all: by largest remainder."""
    order = sorted(exact, key=lambda i: (exact[i] - int(exact[i]), -i), reverse=True)
    more = rest - sum(map(int, exact.values()))
    for place, i in enumerate(order):
        kept[i] += int(exact[i]) + (place < more)


def distribute_as_released(
    scores: Sequence[float], sizes: Sequence[int], sparsity: float, most: float
) -> list[float]:
    """The same as in the released code, in float32 and with its mistake.

    It rounds shares up, and then gives away once more what was too much, instead of taking it back:
    a few weights too many stay. Raises PrunebenchError where the released loop does not end.
    """
    score = torch.tensor(scores, dtype=torch.float32)
    size = torch.tensor(sizes)
    budget = int(sum(sizes) * (1 - sparsity))
    kept = (size * (1 - most)).ceil().long()
    while kept.sum() < budget:
        before = kept
        rest = budget - kept.sum()
        more = (score / score.sum() * rest).ceil()
        kept = kept + more  # float32 from here on
        score = score.masked_fill(kept >= size, 0)
        kept = kept.clamp(max=size)
        if more.sum() == 0:
            _give(kept, size - kept, (score > 0).nonzero().flatten(), budget - kept.sum())
        if kept.sum() > budget:
            order = kept.argsort(descending=True, stable=True)
            _give(kept, kept - (size * (1 - most)).int(), order, kept.sum() - budget)
        if not bool(torch.isfinite(kept).all()) or torch.equal(kept, before):
            raise _endless()
    return [float(one) for one in (1 - kept / size).clamp(min=0, max=1)]


def _give(
    kept: torch.Tensor, room: torch.Tensor, order: torch.Tensor, amount: torch.Tensor
) -> None:
    """Add ``amount`` to ``kept``, one group after the other, to each as much as it has room."""
    for i in order:
        if amount <= 0:
            break
        more = torch.minimum(amount, room[i])
        kept[i] += more
        amount = amount - more
    if amount > 0:
        raise _endless()


def _endless() -> PrunebenchError:
    return PrunebenchError(
        "the released code's loop over the groups does not end with these scores",
        hint="use `mode: clean`, or another `max_sparsity_per_layer`",
    )
