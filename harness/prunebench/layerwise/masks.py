"""Which weights go: the lowest scores of a row, a matrix, an aligned group of M, or all matrices together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import numpy as np
import torch

from prunebench.errors import PrunebenchError

_DIGITS = 1 << 16


def lowest(
    score: torch.Tensor, sparsity: float | str, *, group: Literal["row", "matrix"]
) -> torch.Tensor:
    """True for the weights to remove, bool [out, in].

    ``score`` [out, in]; ``sparsity`` a share (int(n * share) lowest of every row or of the matrix go) or 'N:M' (the M - N
    lowest of every M inputs go, whatever ``group``). Equal scores go by their index, so the count is exact.
    """
    if isinstance(sparsity, str):
        keep, of = map(int, sparsity.split(":"))
        return lowest_of_groups(score, zeros=of - keep, of=of)
    if group == "matrix":
        return _lowest_of_rows(score.reshape(1, -1), sparsity).view_as(score)
    return _lowest_of_rows(score, sparsity)


def lowest_of_groups(score: torch.Tensor, *, zeros: int, of: int) -> torch.Tensor:
    """True for the ``zeros`` lowest of each aligned group of ``of`` consecutive columns, bool [out, in].

    Raises PrunebenchError where ``of`` does not divide the number of columns.
    """
    rows, columns = score.shape
    if columns % of:
        raise PrunebenchError(
            f"groups of {of} do not divide {columns} input features",
            hint="choose an N:M whose M divides every linear's input, or a share such as 0.5",
        )
    # Few members a group: counting who is smaller needs no sort. members [of, out * in / of]
    members = score.reshape(-1, of).t().contiguous()
    # As if all were equal, where the earlier column counts as smaller; then every pair that says otherwise.
    rank = torch.arange(of, dtype=torch.int8, device=score.device)[:, None].repeat(
        1, members.shape[1]
    )
    for a in range(of):
        for b in range(a + 1, of):
            b_smaller = (members[b] < members[a]).view(torch.int8)
            rank[a] += b_smaller
            rank[b] -= b_smaller
    return (rank < zeros).t().reshape(rows, columns)


def lowest_overall(
    weights: Mapping[str, torch.Tensor],
    score: Callable[[torch.Tensor], torch.Tensor],
    share: float,
    *,
    min_density: float = 0.0,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Give (path, mask) for each matrix, True for the weights to remove: the int(total * share) lowest of all matrices.

    ``score(weight)`` gives float32 scores of the weight's shape; equal ones go by the matrices' order, then by index.
    Each matrix keeps at least ceil(n * min_density) of its weights, its highest, and others go instead. One score matrix
    is held at a time, and each is asked for three times before the first mask is given, then once more.
    Raises PrunebenchError for scores that are NaN, and where ``min_density`` leaves too few weights to remove.
    """
    sizes = [weight.numel() for weight in weights.values()]
    count = int(sum(sizes) * share)
    most = [size - math.ceil(size * min_density) for size in sizes]
    if count > sum(most):
        raise PrunebenchError(
            f"{count:,} of {sum(sizes):,} weights cannot go while every matrix keeps {min_density:.3g} of its own",
            hint="lower the sparsity, or min_density",
        )
    for (path, weight), gone in zip(
        weights.items(), _shares_of(weights, score, count, most), strict=True
    ):
        yield path, _lowest_few(score(weight).reshape(1, -1), gone).view(weight.shape)


def _shares_of(
    weights: Mapping[str, torch.Tensor],
    score: Callable[[torch.Tensor], torch.Tensor],
    count: int,
    most: list[int],
) -> list[int]:
    """How many of the ``count`` lowest scores lie in each matrix, where it may lose ``most``.

    The limit is found digit by digit: order-preserving integers are counted by their upper 16 bits, then those that
    share the limit's upper bits by their lower 16. Exact, linear, and no list of all scores.
    """
    upper = torch.zeros(_DIGITS, dtype=torch.int64)
    for (path, weight), at_most in zip(weights.items(), most, strict=True):
        scores = score(weight)
        if bool(scores.isnan().any()):
            raise PrunebenchError(f"{path}: a score is NaN", hint="look for a damaged checkpoint")
        upper += _up_to(_upper_digit(_ordered(scores))).clamp_max(at_most)
    high = int(torch.searchsorted(upper, count))
    lower = torch.zeros(_DIGITS, dtype=torch.int64)
    for weight, at_most in zip(weights.values(), most, strict=True):
        keys = _ordered(score(weight))
        digit = _upper_digit(keys)
        lower += (
            int((digit < high).sum()) + _up_to(keys[digit == high] & (_DIGITS - 1))
        ).clamp_max(at_most)
    limit = ((high - _DIGITS // 2) << 16) + int(torch.searchsorted(lower, count))
    below_limit, at_limit = [], []
    for weight, at_most in zip(weights.values(), most, strict=True):
        keys = _ordered(score(weight))
        below_limit.append(min(at_most, int((keys < limit).sum())))
        at_limit.append(min(at_most, int((keys <= limit).sum())) - below_limit[-1])
    missing = count - sum(below_limit)
    found = []
    for below, tied in zip(below_limit, at_limit, strict=True):
        found.append(below + min(tied, missing))
        missing -= min(tied, missing)
    return found


def _ordered(score: torch.Tensor) -> torch.Tensor:
    """Integers in the order of the float32 scores, int32 [n]."""
    bits = (
        (score.float() + 0.0).flatten().view(torch.int32)
    )  # + 0.0: a negative zero is no smaller than zero
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _upper_digit(keys: torch.Tensor) -> torch.Tensor:
    return (keys >> 16) + _DIGITS // 2


def _up_to(digits: torch.Tensor) -> torch.Tensor:
    """How many are at most 0, 1, 2, ...; int64 [65536] on the CPU."""
    return torch.bincount(digits, minlength=_DIGITS).cumsum(0).cpu()


def kth_lowest(score: torch.Tensor, k: int) -> torch.Tensor:
    """The k-th lowest of each row, k from 1; score [rows, columns] -> [rows, 1]. NaN counts as highest."""
    if score.device.type == "cpu" and score.dtype in {torch.float32, torch.float64}:
        # Selection is linear in the row, and numpy's uses the CPU's vector units: about eight times as fast as torch's.
        return torch.from_numpy(np.partition(score.numpy(), k - 1, axis=1)[:, k - 1 : k])
    return score.kthvalue(k, dim=1, keepdim=True).values


def _lowest_of_rows(score: torch.Tensor, share: float) -> torch.Tensor:
    """True for the int(columns * share) lowest of each row; ties in index order. score [rows, columns]."""
    return _lowest_few(score, int(score.shape[1] * share))


def _lowest_few(score: torch.Tensor, count: int) -> torch.Tensor:
    """True for the ``count`` lowest of each row; ties in index order. score [rows, columns]."""
    if count == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    limit = kth_lowest(score, count)
    mask = score <= limit
    if bool((mask.sum(dim=1) == count).all()):
        return mask
    below, tied = score < limit, score == limit
    missing = count - below.sum(dim=1, keepdim=True)
    return below | (tied & (tied.cumsum(dim=1) <= missing))
