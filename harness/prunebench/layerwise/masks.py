"""Choose the weights with the lowest scores: of a row, a matrix, a group of M, or all matrices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import numpy as np
import torch

from prunebench.errors import PluginError, PrunebenchError, did_you_mean
from prunebench.layerwise.pruner import GROUPS

NOT_FINITE_HINT = "look for a division by zero, a root of a negative number, or an overflow"
_DIGITS = 1 << 16
"""Values of one 16-bit digit."""
_SMALL_GROUP = 16
"""Groups of fewer weights are ranked pair by pair; from here on, selection is faster."""


def lowest(
    score: torch.Tensor,
    sparsity: float | str,
    *,
    group: Literal["row", "matrix"],
    finite: bool = False,
) -> torch.Tensor:
    """True for the weights to remove, bool [out, in].

    ``score``: [out, in]. ``sparsity``: a share, which removes the int(n * share) lowest of every
    row or of the matrix; or 'N:M', which removes the M - N lowest of every M inputs, for any
    ``group``. Of equal scores those with the lower index are removed, so that the count is exact.
    Raises PluginError for a share if a score is not finite: then no order is right. ``finite``
    leaves that check to the caller, so that nothing waits for a GPU.
    """
    if group not in GROUPS:
        raise PluginError(f"group is {group!r}", hint=did_you_mean(str(group), GROUPS))
    if isinstance(sparsity, str):
        keep, of = map(int, sparsity.split(":"))
        return lowest_of_groups(score, zeros=of - keep, of=of)
    if not finite and (fault := not_finite(score)):
        raise PluginError(f"{fault} scores are not finite", hint=NOT_FINITE_HINT)
    if group == "matrix":
        return _lowest_of_rows(score.reshape(1, -1), sparsity).view_as(score)
    return _lowest_of_rows(score, sparsity)


def not_finite(score: torch.Tensor) -> str | None:
    """How many of the scores are NaN or infinite, '12 of 64'; None if all are finite."""
    low, high = torch.aminmax(score.detach())  # one pass: a NaN or infinity shows in the extremes
    if bool(torch.isfinite(low) & torch.isfinite(high)):
        return None
    return f"{score.numel() - int(torch.isfinite(score).sum()):,} of {score.numel():,}"


def lowest_of_groups(score: torch.Tensor, *, zeros: int, of: int) -> torch.Tensor:
    """True for the ``zeros`` lowest of each aligned group of ``of`` columns, bool [out, in].

    Raises PrunebenchError if ``of`` does not divide the number of columns.
    """
    rows, columns = score.shape
    if columns % of:
        raise PrunebenchError(
            f"groups of {of} do not divide {columns} input features",
            hint="choose an N:M whose M divides every linear's input, or a share such as 0.5",
        )
    groups = score.reshape(-1, of)  # [out * in / of, of]
    if of == 4 and 0 < zeros < of and looks_are_cheap(score):
        mask = _lowest_of_four(groups, zeros)
        if mask is not None:
            return mask.view(rows, columns)
    if of < _SMALL_GROUP:
        return (_ranks(groups) < zeros).t().reshape(rows, columns)
    return _lowest_few(groups, zeros).view(rows, columns)


def looks_are_cheap(tensor: torch.Tensor) -> bool:
    """Whether Python can look at a value of ``tensor`` without waiting.

    An accelerator would have to finish all work that was given to it before, so code that can do
    without a look computes a little more there.
    """
    return tensor.device.type == "cpu"


def _lowest_of_four(groups: torch.Tensor, zeros: int) -> torch.Tensor | None:
    """True for the ``zeros`` lowest of each group, bool [groups, 4]; None if ranks must decide.

    A network of minima and maxima finds the highest score to remove of every group. It reads the
    scores where they are, which takes a third of the time of ranks. Ranks decide ties, group by
    group, and everything if a score is not finite.
    """
    a, b, c, d = groups.unbind(1)
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    other_low, other_high = torch.minimum(c, d), torch.maximum(c, d)
    if zeros == 1:
        threshold = torch.minimum(low, other_low)
    else:
        # The two in the middle: all four in order are least, these two, largest.
        middle = torch.maximum(low, other_low), torch.minimum(high, other_high)
        threshold = torch.minimum(*middle) if zeros == 2 else torch.maximum(*middle)
    if not math.isfinite(float(threshold.sum())):
        return None
    mask = groups <= threshold[:, None]
    # Without NaN each group loses at least ``zeros``, so the total tells whether one loses more.
    if int(mask.count_nonzero()) != zeros * len(groups):
        removed = mask.view(torch.int8).sum(1, dtype=torch.int8)
        tied = (removed > zeros).nonzero().squeeze(1)
        mask[tied] = (_ranks(groups[tied]) < zeros).t()
    return mask


def _ranks(groups: torch.Tensor) -> torch.Tensor:
    """The rank of each member in its group, of equal ones by index; [groups, of] -> [of, groups].

    Takes of^2 / 2 comparisons of all groups at once, without a sort.
    """
    of = groups.shape[1]
    members = groups.t().contiguous()  # [of, groups]
    # Start as if all were equal: then a member's rank is its index. Each pair in which the later
    # one is smaller swaps one rank. Ranks are below `_SMALL_GROUP`, so they fit into int8.
    rank = torch.arange(of, dtype=torch.int8, device=groups.device)[:, None].repeat(
        1, members.shape[1]
    )
    # Indexing a tensor costs as much as a comparison of short rows: take all rows apart once.
    rows, ranks = members.unbind(), rank.unbind()
    for a in range(of):
        for b in range(a + 1, of):
            b_smaller = (rows[b] < rows[a]).view(torch.int8)
            ranks[a].add_(b_smaller)
            ranks[b].sub_(b_smaller)
    return rank


def lowest_overall(
    weights: Mapping[str, torch.Tensor],
    score: Callable[[torch.Tensor], torch.Tensor],
    share: float,
    *,
    min_density: float = 0.0,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Give (path, mask) for each matrix, True for the int(total * share) lowest scores of them all.

    ``score(weight)`` gives float32 scores of the weight's shape. Equal scores are removed in the
    order of the matrices, then of the index. Each matrix keeps at least ceil(n * min_density) of
    its weights, those with the highest scores; others are removed instead. One score matrix is in
    memory at a time: each is computed three times before the first mask is given, then once more.

    Raises PrunebenchError if a score is NaN, and if ``min_density`` leaves too few weights to
    remove.
    """
    sizes = [weight.numel() for weight in weights.values()]
    count = int(sum(sizes) * share)
    removable = [size - math.ceil(size * min_density) for size in sizes]
    if count > sum(removable):
        raise PrunebenchError(
            f"{count:,} of {sum(sizes):,} weights cannot be removed while every matrix keeps"
            f" {min_density:.3g} of its own",
            hint="lower the sparsity, or min_density",
        )
    removed = _counts_by_matrix(weights, score, count, removable)
    for (path, weight), each in zip(weights.items(), removed, strict=True):
        yield path, _lowest_few(score(weight).reshape(1, -1), each).view(weight.shape)


def _counts_by_matrix(
    weights: Mapping[str, torch.Tensor],
    score: Callable[[torch.Tensor], torch.Tensor],
    count: int,
    removable: list[int],
) -> list[int]:
    """How many of the ``count`` lowest scores are in each matrix, if it may lose ``removable``.

    A radix selection: the threshold is found digit by digit. Order-preserving integers are counted
    by their upper 16 bits, then those that share the threshold's upper bits by their lower 16. It
    is exact, takes linear time, and never holds a list of all scores.
    """
    # upper[d]: scores whose upper digit is at most d, each matrix counting at most what it may lose
    upper = torch.zeros(_DIGITS, dtype=torch.int64)
    for (path, weight), most in zip(weights.items(), removable, strict=True):
        scores = score(weight)
        if bool(scores.isnan().any()):
            raise PrunebenchError(f"{path}: a score is NaN", hint="look for a damaged checkpoint")
        upper += _cumulative(_upper_digit(_ordered(scores))).clamp_max(most)
    high = int(torch.searchsorted(upper, count))
    # lower[d]: scores at most (high, d)
    lower = torch.zeros(_DIGITS, dtype=torch.int64)
    for weight, most in zip(weights.values(), removable, strict=True):
        keys = _ordered(score(weight))
        digit = _upper_digit(keys)
        below = int((digit < high).sum())
        lower += (below + _cumulative(keys[digit == high] & (_DIGITS - 1))).clamp_max(most)
    threshold = ((high - _DIGITS // 2) << 16) + int(torch.searchsorted(lower, count))
    below_threshold, at_threshold = [], []
    for weight, most in zip(weights.values(), removable, strict=True):
        keys = _ordered(score(weight))
        below_threshold.append(min(most, int((keys < threshold).sum())))
        at_threshold.append(min(most, int((keys <= threshold).sum())) - below_threshold[-1])
    # Everything below the threshold is removed, and of those equal to it as many as are missing.
    missing = count - sum(below_threshold)
    found = []
    for below, tied in zip(below_threshold, at_threshold, strict=True):
        found.append(below + min(tied, missing))
        missing -= min(tied, missing)
    return found


def _ordered(score: torch.Tensor) -> torch.Tensor:
    """Integers in the order of the float32 scores, int32 [n]."""
    # + 0.0 turns a negative zero, whose bits differ, into zero.
    bits = (score.float() + 0.0).flatten().view(torch.int32)
    # The bits of positive floats are in order already; those of negative ones are in reverse.
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _upper_digit(keys: torch.Tensor) -> torch.Tensor:
    return (keys >> 16) + _DIGITS // 2


def _cumulative(digits: torch.Tensor) -> torch.Tensor:
    """How many digits are at most 0, 1, 2, ...; int64 [65536] on the CPU."""
    return torch.bincount(digits, minlength=_DIGITS).cumsum(0).cpu()


def kth_lowest(score: torch.Tensor, k: int) -> torch.Tensor:
    """The k-th lowest of each row, with k from 1; score [rows, columns] -> [rows, 1].

    NaN counts as the highest.
    """
    if score.device.type == "cpu" and score.dtype in {torch.float32, torch.float64}:
        # Selection takes linear time; numpy's uses the CPU's vector units and is about eight times
        # as fast as torch's.
        return torch.from_numpy(np.partition(score.numpy(), k - 1, axis=1)[:, k - 1 : k])
    return score.kthvalue(k, dim=1, keepdim=True).values


def _lowest_of_rows(score: torch.Tensor, share: float) -> torch.Tensor:
    """True for the int(columns * share) lowest of each row, [rows, columns]; ties by index."""
    return _lowest_few(score, int(score.shape[1] * share))


def _lowest_few(score: torch.Tensor, count: int) -> torch.Tensor:
    """True for the ``count`` lowest of each row, [rows, columns]; ties by index."""
    if count == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    threshold = kth_lowest(score, count)
    mask = score <= threshold
    # Without NaN each row has at least ``count``, so the total tells whether one has more.
    if looks_are_cheap(score) and int(mask.count_nonzero()) == count * len(mask):
        return mask
    # Some row may have ties at its threshold: take as many of them as are missing, from the left.
    below, tied = score < threshold, score == threshold
    missing = count - below.sum(dim=1, keepdim=True)
    # int32 counts the ties of any row, in half the memory
    return below | (tied & (tied.cumsum(dim=1, dtype=torch.int32) <= missing))
