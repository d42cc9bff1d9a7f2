"""How much the loss depends on each weight matrix: ECoFLaP's scores of the first stage.

Zeroth order (arXiv:2310.02998, section 3): for noise z ~ N(0, I) on one matrix and one window,
|L(W + eps z) - L(W - eps z)| / (2 eps), as in MeZO. The noise is drawn again from a stored seed, so
it takes the memory of one matrix. First order: |dL/dW|, from a backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch

from prunebench import PrunebenchError, learning

if TYPE_CHECKING:
    from prunebench import Context

    Matrices = dict[str, Callable[[torch.Tensor], torch.Tensor]]
    """By path: from a parameter to the matrix that is part of it."""

Score = Literal["GradOnly", "GradMagAbs", "GradMagSquare"]
Progress = Callable[[int, int], None]

LARGEST_SEED = 1_000_000_000
TOKENS_AT_ONCE = {"cpu": 512, "cuda": 8192}
"""Tokens of variants that go through the upper layers together, by device."""
HALF_SCALE = 1024.0
"""Gradients of a float16 model are this much larger than they are, or small ones would be zero."""


class Noise(NamedTuple):
    """How the zeroth order perturbs a matrix; names of the released code."""

    noise_eps: float
    num_noise: int
    """Noise vectors for each window."""
    released: bool
    """Whether steps are +eps, -2 eps in place, and losses come from the whole vocabulary head."""


def noise_seeds(seed: int, matrices: int, draws: int) -> list[list[int]]:
    """The seeds of the noise, by matrix and draw: those that the released code takes from numpy."""
    source = np.random.RandomState(seed)
    return [[int(source.randint(LARGEST_SEED)) for _ in range(draws)] for _ in range(matrices)]


def zeroth_order(
    model: Any,
    context: Context,
    linears: Mapping[int, Mapping[str, torch.nn.Linear]],
    windows: torch.Tensor,
    seeds: Mapping[str, Sequence[int]],
    noise: Noise,
) -> dict[str, float]:
    """The sum over draws of |projected gradient| of each linear, by its path.

    ``linears``: by layer and path. ``windows``: int64 [windows, length]. ``seeds``: of each draw,
    by path; `num_noise` of them for each window. Afterwards the weights are what they were, bit for
    bit. Layers below a perturbed one run once, not for each variant of the model.
    """
    scores = {path: 0.0 for some in linears.values() for path in some}
    total = len(scores) * len(windows)
    for done, window in enumerate(windows):
        variants = _Variants(model, context, window, noise)
        first = done * noise.num_noise
        for layer in range(variants.layers):
            here = linears.get(layer, {})
            for path, linear in here.items():
                draws = seeds[path][first : first + noise.num_noise]
                for seed in draws:
                    variants.add(path, linear, seed)
            for path, slope in variants.slopes():
                scores[path] += abs(slope)
            variants.climb()
            context.progress(done * len(scores) + _below(linears, layer), total)
    return scores


def _below(linears: Mapping[int, Mapping[str, Any]], layer: int) -> int:
    """The number of linears up to this layer."""
    return sum(len(some) for index, some in linears.items() if index <= layer)


class _Variants:
    """Variants of the model for one window, which differ in one matrix of one layer.

    They share the states below the layer. Above it their weights are the same, so several of them
    go through the layers together.
    """

    def __init__(self, model: Any, context: Context, window: torch.Tensor, noise: Noise) -> None:
        self._noise = noise
        self._forward = context.partial_forward(model, window[None])
        self.layers = self._forward.layers
        [self._states] = self._forward.start()  # [1, length, hidden]
        self._layer = 0
        self._predicted = len(window) - 1
        device = self._states.device.type
        self._most = max(2, TOKENS_AT_ONCE.get(device, 2048) // len(window))
        self._waiting: list[tuple[str, torch.Tensor]] = []
        self._found: list[tuple[str, float]] = []
        self._loss = self._exact if noise.released else self._close()

    def add(self, path: str, linear: torch.nn.Linear, seed: int) -> None:
        """Run this layer with the linear's weight perturbed both ways."""
        # Asked for each time: what is part of a larger parameter is a new view of it.
        for states in self._perturbed(linear.weight.detach(), seed):
            self._waiting.append((path, states))
        if len(self._waiting) + 2 > self._most:
            self._finish()

    def slopes(self) -> list[tuple[str, float]]:
        """The projected gradients of this layer's variants."""
        self._finish()
        found, self._found = self._found, []
        return found

    def climb(self) -> None:
        """Go to the next layer, with the weights as they are."""
        self._states = self._forward.run(self._layer, 0, self._states)
        self._layer += 1

    def _perturbed(self, weight: torch.Tensor, seed: int) -> Iterator[torch.Tensor]:
        """The layer's output with the weight + eps z, then - eps z, [1, length, hidden]."""
        generator = torch.Generator().manual_seed(seed)
        step = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        step = step.to(weight.device) * self._noise.noise_eps
        kept = weight.clone()
        try:
            weight.copy_(kept + step)
            yield self._forward.run(self._layer, 0, self._states)
            # In place, as released: it rounds twice.
            weight.copy_(weight - 2 * step if self._noise.released else kept - step)
            yield self._forward.run(self._layer, 0, self._states)
        finally:
            weight.copy_(kept)

    def _finish(self) -> None:
        """Run the layers above for all that wait, and compute their slopes."""
        if not self._waiting:
            return
        # The call of one window fits several: its masks and positions broadcast over them.
        states = torch.cat([each for _, each in self._waiting])  # [variants, length, hidden]
        for layer in range(self._layer + 1, self.layers):
            states = self._forward.run(layer, 0, states)
        losses = [self._loss(one[None]) / self._predicted for one in states]
        paths = [path for path, _ in self._waiting[::2]]
        for path, plus, minus in zip(paths, losses[::2], losses[1::2], strict=True):
            self._found.append((path, (plus - minus) / (2 * self._noise.noise_eps)))
        self._waiting = []

    def _exact(self, states: torch.Tensor) -> float:
        return self._forward.nll(0, states)

    def _close(self) -> Callable[[torch.Tensor], float]:
        """A loss that is close for variants so similar to the model, and costs a small part of it.

        `lower_bound` has an error of second order in the difference of the states. That of W + eps
        z and that of W - eps z are nearly the same, so they cancel in the slope.
        """
        states = self._states
        for layer in range(self.layers):
            states = self._forward.run(layer, 0, states)
        return self._forward.lower_bound(0, states) or self._exact


def first_order(
    model: Any,
    linears: Mapping[str, torch.nn.Linear],
    windows: torch.Tensor,
    score: Score,
    progress: Progress,
) -> dict[str, float]:
    """The sum over each matrix of a score of its weights, mean over the windows, by path.

    With g the gradient of a window's mean loss: |g|, |w| |g| or w^2 g^2. One gradient is in memory
    at a time: it becomes a number as soon as the backward pass has reached it.
    """
    from prunebench import next_token_backward  # imports torch, which planning does without

    if windows.shape[1] < 2:
        raise PrunebenchError(
            "windows of one token have no next token to predict",
            hint="make the calibration windows longer",
        )
    owned = _by_owner(linears)
    scale = HALF_SCALE if any(owner.dtype == torch.float16 for owner, _ in owned) else 1.0
    found = dict.fromkeys(linears, 0.0)

    def reducing(matrices: Matrices) -> Callable[[torch.Tensor], None]:
        def reduce(owner: torch.Tensor) -> None:
            assert owner.grad is not None, "the hook runs when the gradient is there"
            for path, view in matrices.items():
                weight, gradient = view(owner.detach()), view(owner.grad)
                found[path] += _total(weight, gradient.float() / scale, score)
            owner.grad = None

        return reduce

    with learning(model, [owner for owner, _ in owned]):
        hooks = [
            owner.register_post_accumulate_grad_hook(reducing(matrices))  # type: ignore[no-untyped-call]
            for owner, matrices in owned
        ]
        try:
            for done, window in enumerate(windows, start=1):
                next_token_backward(model, window[None].to(model.device), scale / (len(window) - 1))
                progress(done, len(windows))
        finally:
            for hook in hooks:
                hook.remove()
    return {path: total / len(windows) for path, total in found.items()}


def _by_owner(linears: Mapping[str, torch.nn.Linear]) -> list[tuple[torch.Tensor, Matrices]]:
    """The parameters that have gradients, and how to cut the matrices [out, in] out of each.

    Most are one matrix. Fused experts and a Conv1D of GPT-2 name the parameter they are part of.
    """
    found: dict[int, tuple[torch.Tensor, Matrices]] = {}
    for path, linear in linears.items():
        owner = getattr(linear, "owner", linear.weight)
        matrices = found.setdefault(id(owner), (owner, {}))[1]
        matrices[path] = getattr(linear, "view", _whole)
    return list(found.values())


def _whole(parameter: torch.Tensor) -> torch.Tensor:
    return parameter


def _total(weight: torch.Tensor, gradient: torch.Tensor, score: Score) -> float:
    """The sum of the score over a matrix."""
    if score == "GradOnly":
        return float(gradient.abs().sum(dtype=torch.float64))
    if score == "GradMagAbs":
        return float((weight.float() * gradient).abs().sum(dtype=torch.float64))
    return float((weight.float() * gradient).square().sum(dtype=torch.float64))


def with_magnitude(slope: float, weight: torch.Tensor, score: Score) -> float:
    """The zeroth-order score of a matrix whose slopes have this sum.

    All weights of the matrix share the slope g: the sum of |w| g, or of w^2 g^2; or g itself.
    """
    if score == "GradOnly":
        return slope
    if score == "GradMagAbs":
        return slope * float(weight.float().abs().sum(dtype=torch.float64))
    return slope**2 * float(weight.float().square().sum(dtype=torch.float64))


def check_scores(scores: Mapping[str, float]) -> None:
    """Raise PrunebenchError if the scores decide nothing."""
    for path, score in scores.items():
        if not math.isfinite(score):
            raise PrunebenchError(
                f"the score of {path} is {score}",
                hint="use float32 or bfloat16, or look for a damaged checkpoint",
            )
    if not any(scores.values()):
        raise PrunebenchError(
            "the loss does not depend on any weight matrix, as far as the scores can tell",
            hint="raise `noise_eps`, use float32, or look for a damaged checkpoint",
        )
