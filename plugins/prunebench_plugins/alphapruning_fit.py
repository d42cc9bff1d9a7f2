"""Fit a power law to the eigenvalues of a weight matrix, as AlphaPruning does.

The tail of the spectrum from the eigenvalue x_i on is p(x) ~ x^-alpha. Hill's estimate of alpha is
1 + n / sum ln(x_k / x_i) over the n eigenvalues x_k >= x_i (arXiv:2410.10912, section 3).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

Metric = Literal["alpha_peak", "alpha_mid", "alpha"]

BELOW_PEAK, ABOVE_PEAK = 0.95, 1.5
"""The range around the spectrum's peak in which alpha_peak looks for the start of the tail."""
AT_ONCE = 1 << 20
"""Distances that are in memory together."""


class PowerLaw(NamedTuple):
    """The law that fits a spectrum."""

    alpha: float
    distance: float
    """Kolmogorov-Smirnov distance between the tail and the law."""


class Fit(NamedTuple):
    """How to fit; the names are those of the released code."""

    metric: Metric
    bins: int
    xmin_pos: float
    released: bool
    """Whether alpha_peak's lower bound is a logarithm, and sums are in float32."""


def eigenvalues(weight: torch.Tensor) -> torch.Tensor:
    """The eigenvalues of W^T W, without the zeros that its shape causes, ascending: float32 [n]."""
    singular: torch.Tensor = torch.linalg.svdvals(weight.float())
    return singular.square().sort().values


def without_zeros(values: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The eigenvalues that are not zero apart from rounding; ``values`` ascend, [n]."""
    # The rank of a matrix as LAPACK counts it: singular values above the largest times eps times
    # the longer side.
    least = float(values[-1].sqrt()) * max(shape) * torch.finfo(torch.float32).eps
    return values[values > least**2]


def power_law(values: torch.Tensor, fit: Fit) -> PowerLaw:
    """Fit the law to positive eigenvalues in ascending order, float32 [n], n >= 2."""
    logs = values.log().double()  # [n]
    starts = _starts(values, fit)
    if not len(starts):
        # The released code then takes the first of its zeros: no eigenvalue was looked at.
        return PowerLaw(0.0, 1.0)
    alphas = _hill(logs, starts)  # [starts]
    distances = _distances(logs, starts, alphas)
    # The first of equal distances, as argmin gives on a CPU.
    best = int((distances == distances.min()).nonzero()[0])
    alpha = alphas[best]
    if fit.released:
        alpha = _rounded_hill(values.log(), int(starts[best]))
    return PowerLaw(float(alpha), float(distances[best]))


def _hill(logs: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """Hill's estimate for the tails that begin at ``starts``, float64 [starts]."""
    # All tails in one pass: sums from the end. [n]
    sums = logs.flip(0).cumsum(0).flip(0)
    sizes = len(logs) - starts
    return 1 + sizes / (sums[starts] - sizes * logs[starts])


def _rounded_hill(logs: torch.Tensor, start: int) -> torch.Tensor:
    """Hill's estimate in float32, as the released code computes it; logs float32 [n].

    A steep tail is the small difference of two large sums, which rounding moves: an exponent of 18
    by 1e-4 of itself.
    """
    size = float(len(logs) - start)
    return 1 + size / (logs[start:].sum() - size * logs[start])


def _distances(logs: torch.Tensor, starts: torch.Tensor, alphas: torch.Tensor) -> torch.Tensor:
    """The Kolmogorov-Smirnov distance of each tail from its law, float64 [starts].

    It is 1 if the exponent is not above 1, because then the law is no distribution.
    """
    indices = torch.arange(len(logs), device=logs.device)
    found = []
    rows = max(1, AT_ONCE // len(logs))
    for begin, alpha in zip(torch.split(starts, rows), torch.split(alphas, rows), strict=True):
        ranks = indices - begin[:, None]  # [some starts, n]; negative before the tail
        # 1 - (x_k / x_i)^(1 - alpha), the law's distribution, and rank / n, the tail's own
        law = -torch.expm1((1 - alpha)[:, None] * (logs - logs[begin][:, None]))
        gaps = (law - ranks / (len(logs) - begin)[:, None]).abs_()
        found.append(gaps.masked_fill_(ranks < 0, 0).amax(1).masked_fill_(alpha <= 1, 1.0))
    return torch.cat(found).nan_to_num_(1.0)  # NaN if all eigenvalues of a tail are equal


def _starts(values: torch.Tensor, fit: Fit) -> torch.Tensor:
    """Indices at which the tail may begin, ascending; empty if the released code finds none."""
    count = len(values)
    if fit.metric == "alpha_mid":
        return torch.tensor([min(int(count / fit.xmin_pos), count - 2)], device=values.device)
    candidates = torch.arange(count - 1, device=values.device)
    if fit.metric == "alpha":
        return candidates
    peak = _peak(values, fit.bins)
    lower = BELOW_PEAK * peak
    if fit.released:
        lower = lower.log10()
    inner = values[:-1]
    found = candidates[(inner >= lower) & (inner <= ABOVE_PEAK * peak)]
    if len(found) or fit.released:
        return found
    # A bin may be so wide that no eigenvalue is near its edge: take the first one above it.
    return (inner < lower).sum().clamp(max=count - 2)[None]


def _peak(values: torch.Tensor, bins: int) -> torch.Tensor:
    """The left edge of the fullest bin of the histogram of log10 of the eigenvalues, as 10^edge."""
    logs = values.log10()
    low, high = logs.min(), logs.max()
    counts = torch.histc(logs, bins, min=float(low), max=float(high))
    edges = torch.linspace(float(low), float(high), bins + 1, device=values.device)
    return 10 ** edges[counts.argmax()]
