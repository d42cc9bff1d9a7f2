"""RIA's channel permutation: which input channels share the groups of an N:M pattern.

Zhang et al., ICLR 2024, section 3.2. A permutation is an index [in]: channel ``index[j]`` comes to
place j, and places j * M to j * M + M - 1 are a group.
"""

from __future__ import annotations

from typing import Literal

import torch

from prunebench import Pattern, lowest

Importance = Literal["sum", "retained_degree_unstructured", "retained_degree_per_outneuron"]


def reallocated(score: torch.Tensor, pattern: Pattern, importance: Importance) -> torch.Tensor:
    """Deal the channels, sorted by importance, to the groups like cards; int64 [in].

    ``score``: [out, in]. Every group gets one channel of each M-th of the order, in turns from the
    weakest and from the strongest end, so that all groups are about as important.
    """
    order = _by_importance(score, pattern, importance)
    dealt = [
        part.flip(0) if turn % 2 else part
        for turn, part in enumerate(order.view(pattern.of, -1))  # M parts of [groups]
    ]
    return torch.stack(dealt, dim=1).flatten()


def _by_importance(score: torch.Tensor, pattern: Pattern, importance: Importance) -> torch.Tensor:
    """The channels from the least to the most important one, int64 [in]."""
    if importance == "sum":
        return score.sum(dim=0).argsort(stable=True)
    group: Literal["row", "matrix"] = "row" if importance.endswith("outneuron") else "matrix"
    gone = lowest(score, pattern.sparsity, group=group)
    # By what a channel would keep; of equal ones first those that would lose fewer weights.
    order = gone.sum(dim=0).argsort(stable=True)
    kept = score.masked_fill(gone, 0).sum(dim=0)
    return order[kept[order].argsort(stable=True)]


def improved(
    score: torch.Tensor, index: torch.Tensor, pattern: Pattern, blocks: int
) -> torch.Tensor:
    """Exchange channels between groups so that more of the ``score`` [out, in] stays; int64 [in].

    The channels at one place of all groups are assigned anew, the others held, by a linear sum
    assignment that keeps the largest sum of scores; then those at the next place. ``blocks``: the
    number of parts to do this in, as far as they divide the groups.
    """
    from scipy.optimize import linear_sum_assignment  # only here: it takes a while to import

    groups = len(index) // pattern.of
    parts = max(number for number in range(1, blocks + 1) if groups % number == 0)
    found = index.clone().view(parts, -1, pattern.of)  # [parts, groups, M]
    for place in range(pattern.of):
        others = [other for other in range(pattern.of) if other != place]
        for part in found:
            scores = score[:, part]  # [out, groups, M]
            # With the others held, a group keeps the K - 1 best of them, and the better one of the
            # K-th best and the channel that joins them.
            rival = scores[:, :, others].topk(pattern.keep, dim=2).values[:, :, -1]  # [out, groups]
            joins = scores[:, :, place]  # [out, channels]
            # max(a, b) = (a + b + |a - b|) / 2, and sums of a or b alone are the same for every
            # assignment: so the L1 distances decide, without a tensor [out, groups, channels].
            gain = torch.cdist(rival.t(), joins.t(), p=1)  # [groups, channels]
            chosen = linear_sum_assignment(gain.cpu().numpy(), maximize=True)[1]
            part[:, place] = part[torch.from_numpy(chosen).to(part.device), place]
    return found.flatten()
