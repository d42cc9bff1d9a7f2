"""How BESA trains the sparsities of one decoder layer (arXiv:2402.16880, equation 1).

Each step gives one batch to the layer under the masks of the current sparsities. The loss is

    l2_alpha * sum(((Y - Y') / c)^2) / hidden + sparsity_beta * ((A - S) / S)^2

for the dense outputs Y, those under the masks Y', the L2 norm c of every channel of Y, the mean
sparsity A of the layer's weights, and the sparsity S that was asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from prunebench import PrunebenchError
from prunebench_plugins import besa_ranking as ranking
from prunebench_plugins.besa_scores import STATISTICS, scores_of

if TYPE_CHECKING:
    from prunebench import LayerTraining

AGC_LEAST_NORM = 1e-3
"""timm's adaptive clipping treats parameters with a smaller norm as if they had this one."""


@dataclass
class LayerResult:
    """What was learned in one layer, and what it cost in quality."""

    learned: float
    """Mean sparsity of the trained weights, before it was trimmed."""
    sparsities: dict[str, torch.Tensor]
    """Of every linear, of each unit as learned; float64 [units]."""
    zeros: dict[str, torch.Tensor]
    """Of every linear, the share that each line loses; float64 [lines]."""
    training_loss: list[float]
    """Reconstruction loss, mean over the steps of each epoch."""
    losses: list[float] = field(default_factory=list)
    """Reconstruction loss of each batch under the final masks."""


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


class SparsityLearner:
    """Learns the sparsities of one layer after the other: a `prunebench.LayerTrainer`.

    ``blocksize``: lines that share a sparsity, -1 for all of a linear. ``columns``: lines are
    columns of the matrix instead of rows.
    """

    def __init__(
        self, options: Any, sparsity: float, *, blocksize: int = -1, columns: bool = False
    ) -> None:
        self.options = options
        self.sparsity = sparsity
        self.statistics = STATISTICS[options.metric]
        self.results: dict[int, LayerResult] = {}
        self.steps = 0
        self._blocksize, self._columns = blocksize, columns

    def train_layer(self, layer: LayerTraining) -> dict[str, torch.Tensor]:
        state = LayerSparsity(self._ranked(layer), self.options, self.sparsity)
        losses = list(self._epochs(layer, state)) if self.sparsity and state.learned else []
        with torch.no_grad():
            sparsities = state.sparsities(state.coefficients()).double().cpu()
            # Nothing is asked for: a coefficient of zero would still remove a half.
            trim = self.options.mode == "clean" and self.options.trim
            counts = state.final_counts(trim=trim)
            if not self.sparsity:
                counts = {name: torch.zeros_like(one) for name, one in counts.items()}
            weights = {
                name: one.masked(ranking.kept(one, counts[name]))
                for name, one in state.linears.items()
            }
        self.results[layer.index] = LayerResult(
            float(state.mean(sparsities.float().to(state.theta.device))) if self.sparsity else 0.0,
            dict(ranking.split(sparsities, state.learned)),
            {
                name: counts[name].double().cpu() / one.ranks.shape[1]
                for name, one in state.linears.items()
            },
            losses,
        )
        return weights

    def see_trained(self, layer: LayerTraining, target: torch.Tensor, output: torch.Tensor) -> None:
        norms = self._norms(layer) if self.options.norm_all else _channel_norms(target)
        self.results[layer.index].losses.append(float(_reconstruction(target, output, norms)))

    def _ranked(self, layer: LayerTraining) -> dict[str, ranking.Ranked]:
        """The weights of the layer's linears in order, with their number of units."""
        texts = self.options.fix_layers or ()
        for text in texts:
            if not any(_names(text, name) for name in layer.linears):
                raise PrunebenchError(
                    f"fix_layers: no linear of layer {layer.index} has '{text}' in its name",
                    hint=f"names in this layer: {', '.join(layer.linears)}, or all",
                )
        found = {}
        for name, score in scores_of(self.options.metric, layer).items():
            fixed = any(_names(text, name) for text in texts)
            lines = score.shape[1 if self._columns else 0]
            size = lines if self._blocksize == -1 else self._blocksize
            if lines % size:
                raise PrunebenchError(
                    f"blocksize {size} does not divide the {lines}"
                    f" {'columns' if self._columns else 'rows'} of {layer.path}.{name}",
                    hint="1 learns each line apart, -1 all of a linear together",
                )
            units = 0 if fixed else lines // size
            weight = layer.linears[name].weight
            found[name] = ranking.ranked(score, weight, units, columns=self._columns)
        return found

    def _epochs(self, layer: LayerTraining, state: LayerSparsity) -> Iterator[float]:
        """Train; give the mean reconstruction loss of each epoch."""
        options = self.options
        optimiser = make_optimiser(options, state.theta)
        fixed = {name: weight.detach() for name, weight in state.fixed_weights().items()}
        norms = self._norms(layer) if options.norm_all else None
        for epoch in range(options.epochs):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(options) * cosine_factor(options, epoch)
            losses = []
            for batch in range(layer.batches):
                losses.append(self._step(layer, batch, state, fixed, norms))
                clip(state.theta, options)
                optimiser.step()
                self.steps += 1
            yield sum(losses) / len(losses)

    def _step(
        self,
        layer: LayerTraining,
        batch: int,
        state: LayerSparsity,
        fixed: Mapping[str, torch.Tensor],
        norms: torch.Tensor | None,
    ) -> float:
        """Set the gradient of the coefficients; return the reconstruction loss of the batch."""
        target = layer.target(batch)  # [windows, length, hidden]
        beta = state.coefficients()
        sparsities = state.sparsities(beta)
        output = layer.forward(batch, {**fixed, **state.weights(beta, sparsities)})
        loss = _reconstruction(target, output, _channel_norms(target) if norms is None else norms)
        off = (state.mean(sparsities) - state.sparsity) / state.sparsity
        total = self.options.l2_alpha * loss + self.options.sparsity_beta * off**2
        # A channel's squared norm is about its number of tokens, so gradients of the outputs are
        # that small: too small for float16.
        scale = float(target.numel()) if target.dtype == torch.float16 else 1.0
        (gradient,) = torch.autograd.grad(total * scale, state.theta)
        state.theta.grad = gradient / scale
        found = float(loss.detach())
        if not math.isfinite(found) or not bool(torch.isfinite(gradient).all()):
            raise PrunebenchError(
                f"layer {layer.index}: the reconstruction loss or its gradient is not finite",
                hint="use float32 or bfloat16, or look for a damaged checkpoint",
            )
        return found

    def _norms(self, layer: LayerTraining) -> torch.Tensor:
        """L2 norm of every channel of all targets together, float32 [hidden]."""
        squares = sum(
            layer.target(batch).float().square().sum((0, 1)) for batch in range(layer.batches)
        )
        assert isinstance(squares, torch.Tensor)
        return _without_zeros(squares.sqrt())


def _names(text: str, name: str) -> bool:
    return text == "all" or text in name


def _channel_norms(target: torch.Tensor) -> torch.Tensor:
    """L2 norm of every channel over the tokens of a batch, float32 [hidden]."""
    return _without_zeros(torch.linalg.vector_norm(target.float().flatten(0, 1), dim=0))


def _without_zeros(norms: torch.Tensor) -> torch.Tensor:
    """Norms to divide by: a channel that is always zero is not scaled."""
    return norms.masked_fill(norms == 0, 1.0)


def _reconstruction(
    target: torch.Tensor, output: torch.Tensor, norms: torch.Tensor
) -> torch.Tensor:
    """sum(((target - output) / norms)^2) / hidden, float32."""
    return ((target.float() - output.float()) / norms).square().sum() / target.shape[-1]


def learning_rate(options: Any) -> float:
    """The learning rate, by default that of the released code for the optimiser."""
    if options.learning_rate is not None:
        return float(options.learning_rate)
    return 1.0 if options.optimizer == "prodigy" else 0.01


def cosine_factor(options: Any, epoch: int) -> float:
    """What the learning rate is multiplied by in an epoch."""
    if not options.use_cos_sche:
        return 1.0
    # The released code sets the rate of an epoch from the number of the epoch before it.
    done = max(0, epoch - 1) if options.mode == "reference" else epoch
    return (1 + math.cos(math.pi * done / options.epochs)) / 2


def make_optimiser(options: Any, theta: torch.Tensor) -> torch.optim.Optimizer:
    """AdamW, or Prodigy (arXiv:2306.06101). Raises PrunebenchError if that is not installed."""
    if options.optimizer == "adamw":
        return torch.optim.AdamW(
            [theta], lr=learning_rate(options), weight_decay=options.weight_decay
        )
    found: torch.optim.Optimizer = prodigy()(
        [theta],
        lr=learning_rate(options),
        weight_decay=options.weight_decay,
        decouple=options.decouple,
        use_bias_correction=options.use_bias_correction,
        safeguard_warmup=options.safeguard_warmup,
        d_coef=options.d_coef,
    )
    return found


def prodigy() -> Any:
    """The optimiser of the package prodigyopt, an optional extra."""
    try:
        from prodigyopt import Prodigy
    except ImportError as error:
        raise PrunebenchError(
            "besa: the optimiser Prodigy is not installed",
            hint="pip install 'prunebench[besa]', or leave `optimizer: adamw`",
        ) from error
    return Prodigy


@torch.no_grad()
def clip(theta: torch.Tensor, options: Any) -> None:
    """Clip the gradient in place as `clip_grad` and `clip_mode` say; a row of theta is a unit."""
    if options.clip_grad is None:
        return
    assert theta.grad is not None
    if options.clip_mode == "norm":
        torch.nn.utils.clip_grad_norm_([theta], options.clip_grad)
    elif options.clip_mode == "value":
        torch.nn.utils.clip_grad_value_([theta], options.clip_grad)
    else:  # adaptive (arXiv:2102.06171): by the norm of what is changed
        most = theta.norm(dim=-1, keepdim=True).clamp_min(AGC_LEAST_NORM) * options.clip_grad
        norm = theta.grad.norm(dim=-1, keepdim=True)
        theta.grad.mul_(torch.where(norm < most, 1.0, most / norm.clamp_min(1e-6)))
