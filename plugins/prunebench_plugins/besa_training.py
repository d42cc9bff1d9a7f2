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
from prunebench_plugins.besa_optimiser import (
    clip,
    cosine_factor,
    learning_rate,
    make_optimiser,
)
from prunebench_plugins.besa_scores import STATISTICS, scores_of
from prunebench_plugins.besa_units import LayerSparsity

if TYPE_CHECKING:
    from prunebench import LayerTraining


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
        self._norms: torch.Tensor | None = None
        self._blocksize, self._columns = blocksize, columns

    def train_layer(self, layer: LayerTraining) -> dict[str, torch.Tensor]:
        self._norms = _norms_of_all(layer) if self.options.norm_all else None
        if not self.sparsity:  # coefficients of zero would remove a half
            nothing = {name: torch.zeros(1).double() for name in layer.linears}
            self.results[layer.index] = LayerResult(0.0, {}, nothing, [])
            return {}
        state = LayerSparsity(self._ranked(layer), self.options, self.sparsity)
        losses = list(self._epochs(layer, state)) if state.learned else []
        with torch.no_grad():
            sparsities = state.sparsities(state.coefficients()).double().cpu()
            counts = state.final_counts(trim=self.options.mode == "clean" and self.options.trim)
            weights = {
                name: one.masked(ranking.kept(one, counts[name]))
                for name, one in state.linears.items()
            }
        self.results[layer.index] = LayerResult(
            float(state.mean(sparsities.float().to(state.theta.device))),
            dict(ranking.split(sparsities, state.learned)),
            {
                name: counts[name].double().cpu() / one.ranks.shape[1]
                for name, one in state.linears.items()
            },
            losses,
        )
        return weights

    def see_trained(self, layer: LayerTraining, target: torch.Tensor, output: torch.Tensor) -> None:
        norms = _channel_norms(target) if self._norms is None else self._norms
        self.results[layer.index].losses.append(float(_reconstruction(target, output, norms)))

    def _ranked(self, layer: LayerTraining) -> dict[str, ranking.Ranked]:
        """The weights of the layer's linears in order, with their number of units."""
        found = {}
        for name, score in scores_of(self.options.metric, layer).items():
            units = 0 if self._is_fixed(f"{layer.path}.{name}") else self._units(score)
            weight = layer.linears[name].weight
            mixed = self._columns and self._blocksize != -1 and self.options.mode == "reference"
            found[name] = ranking.ranked(score, weight, units, columns=self._columns, mixed=mixed)
        return found

    def check(self, linears: Mapping[str, Any]) -> None:
        """Raise PrunebenchError if options do not fit these linears, which are by their path."""
        for text in self.options.fix_layers or ():
            if not any(_names(text, path) for path in linears):
                names = dict.fromkeys(path.partition(".layers.")[2] for path in linears)
                raise PrunebenchError(
                    f"fix_layers: no linear that is pruned has '{text}' in its name",
                    hint=f"the first ones are {', '.join(list(names)[:7])}; or write all",
                )
        for path, linear in linears.items():
            lines = linear.weight.shape[1 if self._columns else 0]
            if not self._is_fixed(path) and lines % max(1, self._blocksize):
                raise PrunebenchError(
                    f"blocksize {self._blocksize} does not divide the {lines}"
                    f" {'columns' if self._columns else 'rows'} of {path}",
                    hint="1 learns each line apart, -1 all of a linear together",
                )

    def _is_fixed(self, path: str) -> bool:
        return any(_names(text, path) for text in self.options.fix_layers or ())

    def _units(self, weight: torch.Tensor) -> int:
        """Number of units of a weight [out, in]."""
        lines = weight.shape[1 if self._columns else 0]
        return 1 if self._blocksize == -1 else lines // self._blocksize

    def _epochs(self, layer: LayerTraining, state: LayerSparsity) -> Iterator[float]:
        """Train; give the mean reconstruction loss of each epoch."""
        options = self.options
        optimiser = make_optimiser(options, state.theta)
        fixed = {name: weight.detach() for name, weight in state.fixed_weights().items()}
        for epoch in range(options.epochs):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(options) * cosine_factor(options, epoch)
            losses = []
            for batch in range(layer.batches):
                losses.append(self._step(layer, batch, state, fixed))
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
    ) -> float:
        """Set the gradient of the coefficients; return the reconstruction loss of the batch."""
        target = layer.target(batch)  # [windows, length, hidden]
        beta = state.coefficients()
        sparsities = state.sparsities(beta)
        output = layer.forward(batch, {**fixed, **state.weights(beta, sparsities)})
        norms = _channel_norms(target) if self._norms is None else self._norms
        loss = _reconstruction(target, output, norms)
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


def _names(text: str, name: str) -> bool:
    return text == "all" or text in name


def _norms_of_all(layer: LayerTraining) -> torch.Tensor:
    """L2 norm of every channel of all targets together, float32 [hidden]."""
    squares = torch.stack(
        [layer.target(batch).float().square().sum((0, 1)) for batch in range(layer.batches)]
    )
    return _without_zeros(squares.sum(0).sqrt())


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
