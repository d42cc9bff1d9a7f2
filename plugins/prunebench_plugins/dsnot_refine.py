"""DSnoT's exchange of weights in every row of a mask (arXiv:2310.08915, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from prunebench import InputStatistic

NUMPY_THREADS = 4
"""With more threads torch computes variances faster than numpy, which takes one."""
NUMPY_ROWS = 64
"""Tokens whose squares are added up while they are in the cache."""
NARROW = 1e-4
"""A variance below this share of the mean square loses digits as a difference of sums."""


class SequenceMoments(InputStatistic):
    """Sum and variance of every input feature within a window, means over windows; float32 [2, in].

    The variance is that around a window's own mean, as in the released code. Running means, window
    by window in the same order of operations: then near-ties fall the same way.
    """

    name = "sequence_moments"

    def __init__(self, features: int, device: torch.device) -> None:
        super().__init__(features, device)
        self.sums = torch.zeros(features, device=device)
        self.variance = torch.zeros(features, device=device)
        self.windows = 0

    def add(self, inputs: torch.Tensor, windows: int) -> None:
        for window in inputs.float().view(windows, -1, self.features):  # [length, in]
            before, self.windows = self.windows, self.windows + 1
            self.sums *= before / self.windows
            self.sums += window.sum(dim=0) / self.windows
            tokens, length = before * len(window), len(window)
            variance = _variance(window)
            self.variance = (self.variance * tokens + variance * length) / (tokens + length)

    def finite(self) -> bool:
        return bool(torch.isfinite(self.variance).all())

    def result(self) -> torch.Tensor:
        return torch.stack([self.sums, self.variance])


def _variance(x: torch.Tensor) -> torch.Tensor:
    """`x.var(dim=0, unbiased=False)`, to the last bit; float32 [tokens, in] -> [in].

    On a CPU torch computes it in float64, one column after the other, and reads a cache line for
    every number. Numpy adds whole rows: a third of the time on two threads. Rounded to float32
    both sums are the same.
    """
    if x.device.type != "cpu" or torch.get_num_threads() > NUMPY_THREADS:
        return x.var(dim=0, unbiased=False)
    rows = x.detach().numpy()  # [tokens, in]
    wide = np.empty((NUMPY_ROWS, rows.shape[1]))
    total, squares = np.zeros((2, rows.shape[1]))
    with np.errstate(invalid="ignore"):  # not finite: whoever asked for the statistic says so
        for start in range(0, len(rows), NUMPY_ROWS):
            some = wide[: len(rows) - start]
            some[:] = rows[start : start + NUMPY_ROWS]
            total += np.add.reduce(some, axis=0)
            squares += np.add.reduce(np.square(some, out=some), axis=0)
        spread = squares - total * (total / len(rows))
    found = torch.from_numpy(spread / len(rows)).float()
    narrow = torch.from_numpy(spread <= NARROW * squares)
    if bool(narrow.any()):
        found[narrow] = x[:, narrow].var(dim=0, unbiased=False)
    return found


@dataclass(frozen=True)
class Exchange:
    """What the weights of a linear's rows do to the mean of its outputs; all [out, in].

    The error of an output is what the dense weights add to it, on average over the windows, and
    the present ones do not.
    """

    gone: torch.Tensor
    """True for weights that are pruned at first."""
    gain: torch.Tensor
    """What the error falls by if a weight comes back."""
    rank: torch.Tensor
    """Pruned weights with the largest absolute rank come back first; it has the sign of `gain`."""
    loss: torch.Tensor
    """What the error grows by if a weight is pruned."""
    cost: torch.Tensor
    """Weights that stay are pruned from the lowest cost on."""


@dataclass(frozen=True)
class Limits:
    """When a row is left as it is."""

    cycles: int
    """Exchanges of a row at most."""
    threshold: float
    """A row whose absolute error is at most this is done."""
    same_sign: bool
    """Whether a row is done before its error would change its sign."""


def exchange(
    rows: Exchange, error: torch.Tensor, limits: Limits, of: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Exchange pruned and present weights, one of each in a cycle, until each row's error is small.

    ``error`` [out]. If it is positive, the pruned weight comes back that lowers it most for its
    variance, and the cheapest present weight is pruned that lowers it too; if it is negative, those
    that raise it. ``of``: M of an N:M pattern; then the cheapest weight of the same group is
    pruned, whatever it does. A row without such weights is done. Returns the new mask, bool
    [out, in], and the new error.
    """
    # An order for each sign of the error, to raise it and to lower it: [2, out, cycles]
    grow, may_grow = _orders(rows.gone, rows.gain, -rows.rank.abs(), limits.cycles)
    drop, may_drop = _orders(~rows.gone, -rows.loss, rows.cost, limits.cycles)
    cost = rows.cost.masked_fill(rows.gone, torch.inf)
    mask, error, first_sign = rows.gone.clone(), error.clone(), error.sign()
    each = torch.arange(len(error), device=error.device)  # all rows
    turn = torch.zeros(2, len(error), dtype=torch.long, device=error.device)  # exchanges so far
    active = torch.ones_like(first_sign, dtype=torch.bool)
    for _ in range(min(limits.cycles, grow.shape[2])):
        side = (error > 0).long()
        now = turn[side, each]
        back = grow[side, each, now]  # a column of each row, [out]
        if of is None:
            out, possible = drop[side, each, now], now < may_drop[side, each]
        else:
            group = (back - back % of)[:, None] + torch.arange(of, device=error.device)  # [out, M]
            lowest, place = cost.gather(1, group).min(dim=1)
            out, possible = group[each, place], lowest.isfinite()
        after = error - rows.gain[each, back] + rows.loss[each, out]
        active &= (error.abs() > limits.threshold) & (now < may_grow[side, each]) & possible
        if limits.same_sign:
            active &= after.sign() == first_sign
        if not bool(active.any()):
            break
        changed = each[active]
        mask[changed, back[active]] = False
        mask[changed, out[active]] = True
        cost[changed, out[active]] = torch.inf  # pruned once
        error = torch.where(active, after, error)
        turn[side, each] += 1
    return mask, error


def _orders(
    among: torch.Tensor, lowers: torch.Tensor, key: torch.Tensor, most: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns by ascending ``key`` among those that raise and those that lower the error.

    All arguments are [out, in]; ``lowers`` is positive for weights that lower it. Returns int64
    [2, out, most], fewer if there are fewer columns, and how many such weights there are, [2, out].
    """
    orders, counts = [], []
    for fits in (among & (lowers < 0), among & (lowers > 0)):
        orders.append(_first_columns(key.masked_fill(~fits, torch.inf), most))
        counts.append(fits.sum(dim=1))
    return torch.stack(orders), torch.stack(counts)


def _first_columns(key: torch.Tensor, most: int) -> torch.Tensor:
    """The columns of each row's ``most`` lowest keys, ascending; of equal ones the left comes first.

    Where the key is infinite the order does not count.
    """
    # One more than needed: it may be equal to the last.
    lowest = key.topk(min(most + 1, key.shape[1]), dim=1, largest=False)
    columns, values = lowest.indices[:, :most], lowest.values
    ties = ((values[:, 1:] == values[:, :-1]) & values[:, 1:].isfinite()).any(dim=1)
    if bool(ties.any()):  # `topk` takes any of them
        columns[ties] = key[ties].sort(dim=1, stable=True).indices[:, :most]
    return columns
