"""The coefficients that BESA learns in one decoder layer, and the masks that follow from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from prunebench_plugins import besa_ranking as ranking


class LayerSparsity:
    """The coefficients of all units of a layer, and what follows from them."""

    def __init__(
        self, linears: Mapping[str, ranking.Ranked], options: Any, sparsity: float
    ) -> None:
        self.linears = linears
        self.learned = {name: one for name, one in linears.items() if one.units}
        self.sparsity = sparsity
        self.reference = options.mode == "reference"
        self._smooth = options.sigmoid_smooth
        device = next(iter(linears.values())).weight.device
        values = ranking.candidates(options.sparsity_step)
        # With coefficients of zero the mean candidate is 0.5. Smoothed ones never get farther from
        # it than 0.12, so the released code misses a sparsity of 0.7: begin at the one asked for.
        tilted = not self.reference and 0 < sparsity < 1
        self._tilt = (ranking.tilt(values, sparsity) if tilted else torch.zeros_like(values)).to(
            device
        )
        self.values = values.to(device)
        self.thresholds = {
            name: ranking.thresholds(values, one.ranks.shape[1]).to(device)
            for name, one in self.learned.items()
        }
        units = sum(one.units for one in self.learned.values())
        self.theta = torch.zeros(units, len(values), device=device, requires_grad=True)
        sizes = [
            torch.full((one.units,), one.weight.numel() / one.units, dtype=torch.float64)
            for one in self.learned.values()
        ]
        self.sizes = torch.cat(sizes) if sizes else torch.zeros(0, dtype=torch.float64)
        total = sum(one.weight.numel() for one in linears.values())
        self._parts = (self.sizes / total).float().to(device)
        self._fixed = sparsity * (1 - float(self.sizes.sum()) / total)

    def coefficients(self) -> torch.Tensor:
        """beta, [units, D]: each row sums to 1."""
        logits = self.theta.sigmoid() if self._smooth else self.theta
        return (logits + self._tilt).softmax(-1)

    def sparsities(self, beta: torch.Tensor) -> torch.Tensor:
        """sum_d beta_d p_d of each unit, [units]."""
        if len(beta) != len(self.learned) or not len(beta):
            return beta @ self.values
        # A product of each unit, as in the released code: another order of summation makes
        # 0.49999997 of a half, which is a weight less.
        return torch.stack([self.values @ one for one in beta])

    def mean(self, sparsities: torch.Tensor) -> torch.Tensor:
        """Mean sparsity of the layer's weights; ``sparsities``: [units]."""
        return (sparsities * self._parts).sum() + self._fixed

    def counts(self, sparsities: torch.Tensor, length: int) -> torch.Tensor:
        """How many weights of a line of ``length`` a unit's sparsity removes, int64 [units]."""
        # The released code cuts off a product in float32: a half of 576 may become 287.
        slack = 0.0 if self.reference else ranking.SLACK
        return (sparsities.detach() * length + slack).long()

    def weights(self, beta: torch.Tensor, sparsities: torch.Tensor) -> dict[str, torch.Tensor]:
        """The masked weights, each [out, in], by linear; gradients flow to ``beta``."""
        betas = ranking.split(beta, self.learned)
        units = ranking.split(sparsities, self.learned)
        masked: Any = ranking.LearnedMask.apply
        return {
            name: masked(
                betas[name],
                self.counts(units[name], one.ranks.shape[1]),
                one,
                self.thresholds[name],
            )
            for name, one in self.learned.items()
        }

    def fixed_weights(self) -> dict[str, torch.Tensor]:
        """The masked weights of the linears whose sparsity is not learned."""
        return {
            name: one.masked(ranking.kept(one, self._fixed_counts(one)))
            for name, one in self.linears.items()
            if not one.units
        }

    def _fixed_counts(self, one: ranking.Ranked) -> torch.Tensor:
        lines, length = one.ranks.shape
        return torch.full((lines,), int(length * self.sparsity), device=one.ranks.device)

    @torch.no_grad()
    def final_counts(self, *, trim: bool) -> dict[str, torch.Tensor]:
        """How many weights each line of each linear loses in the end, int64 [lines]."""
        sparsities = self.sparsities(self.coefficients())
        units = ranking.split(sparsities, self.learned)
        found = {
            name: self.counts(units[name], one.ranks.shape[1]).repeat_interleave(one.lines_per_unit)
            for name, one in self.learned.items()
        }
        if trim and found:
            found = self._trimmed(sparsities)
        fixed = {name: self._fixed_counts(one) for name, one in self.linears.items()}
        return {name: found.get(name, fixed[name]) for name in self.linears}

    def _trimmed(self, sparsities: torch.Tensor) -> dict[str, torch.Tensor]:
        """Counts of the lines, int64 [lines] by linear, that remove the exact budget."""
        total = sum(one.weight.numel() for one in self.linears.values())
        fixed = sum(
            int(self._fixed_counts(one).sum()) for one in self.linears.values() if not one.units
        )
        most = int(self.sizes.sum())
        budget = min(max(round(self.sparsity * total) - fixed, 0), most)
        shifted = ranking.shifted(sparsities.double().cpu(), self.sizes, budget)
        shares, lengths = [], []
        for name, part in ranking.split(shifted, self.learned).items():
            one = self.learned[name]
            shares.append(part.repeat_interleave(one.lines_per_unit))
            lengths.append(torch.full((len(one.weight),), float(one.ranks.shape[1])).double())
        counts = ranking.whole_counts(torch.cat(shares), torch.cat(lengths), budget)
        rows = torch.split(counts, [len(one.weight) for one in self.learned.values()])
        device = self.theta.device
        return {name: part.to(device) for name, part in zip(self.learned, rows, strict=True)}
