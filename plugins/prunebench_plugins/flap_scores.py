"""FLAP's fluctuation metric: how much each channel and group matters (arXiv:2312.11983)."""

from __future__ import annotations

from typing import Literal

import torch

from prunebench import InputStatistic

Metric = Literal["WIFV", "IFV", "WIFN"]


class Fluctuation(InputStatistic):
    """Mean and variance of every input feature over the tokens, float32 [2, in].

    Batches are joined exactly, as Welford, and Chan, Golub and LeVeque do.
    """

    name = "fluctuation"

    def __init__(self, features: int, device: torch.device) -> None:
        super().__init__(features, device)
        self.tokens = 0
        self.mean = torch.zeros(features, device=device)
        self.squares = torch.zeros(features, device=device)  # sum of (x - mean)^2

    def add(self, inputs: torch.Tensor, windows: int) -> None:  # noqa: ARG002
        x = inputs.float()  # [tokens, in]
        mean = x.mean(dim=0)
        before, count = self.tokens, len(inputs)
        self.tokens += count
        change = mean - self.mean
        self.mean += change * (count / self.tokens)
        # Two passes: `torch.var_mean` over the first dimension takes many times longer on a CPU.
        self.squares += (x - mean).square_().sum(dim=0)
        self.squares += change.square() * (before * count / self.tokens)

    def finite(self) -> bool:
        return bool(torch.isfinite(self.squares).all())

    def result(self) -> torch.Tensor:
        return torch.stack([self.mean, self.squares / self.tokens])


class ReleasedFluctuation(InputStatistic):
    """The same as the released code computes it, window by window, float32 [2, in].

    There the mean before a window is the same tensor as the mean after it. So every window adds its
    squares around the new mean, and the first one adds nothing.
    """

    name = "fluctuation"

    def __init__(self, features: int, device: torch.device) -> None:
        super().__init__(features, device)
        self.windows = 0
        self.mean = torch.zeros(features, device=device)
        self.fluctuation = torch.zeros(features, device=device)

    def add(self, inputs: torch.Tensor, windows: int) -> None:
        for window in inputs.float().view(windows, -1, self.features):  # [length, in]
            before, self.windows = self.windows, self.windows + 1
            self.mean *= before / self.windows
            self.mean += window.mean(dim=0) / self.windows
            if before:
                self.fluctuation *= (before - 1) / before
                self.fluctuation += (window - self.mean).square_().sum(dim=0) / self.windows

    def finite(self) -> bool:
        return bool(torch.isfinite(self.fluctuation).all())

    def result(self) -> torch.Tensor:
        return torch.stack([self.mean, self.fluctuation])


def channel_metric(
    weight: torch.Tensor, metric: Metric, fluctuation: torch.Tensor, norm: torch.Tensor | None
) -> torch.Tensor:
    """How much each input channel of ``weight`` [out, in] matters, float32 [in].

    ``IFV`` is the input's fluctuation [in], ``WIFV`` that times the squared norm of the weight's
    column. ``WIFN`` is the mean of |w| times the input's norm [in] (Wanda's score).
    """
    if metric == "IFV":
        return fluctuation
    if metric == "WIFV" or norm is None:
        return fluctuation * weight.float().square().sum(dim=0)
    return (weight.float().abs() * norm).mean(dim=0)


def group_scores(metric: torch.Tensor, groups: int, *, standardised: bool) -> torch.Tensor:
    """Scores of a block's groups from the metric of its channels [in], float64 [groups].

    ``standardised``: by the block's mean and standard deviation, for blocks that compete; then a
    group has the mean of its channels, otherwise their sum.
    """
    if not standardised:
        return metric.view(groups, -1).sum(dim=1).double().cpu()
    # A block whose channels all matter the same has a deviation of zero.
    scores = ((metric - metric.mean()) / metric.std()).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return scores.view(groups, -1).mean(dim=1).double().cpu()
