"""How much each row or column of a weight matters: LLM-Pruner's importance vectors (arXiv:2305.11627, equations 3 to 5),
and how those of coupled weights make one score for each group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch

from prunebench import PrunebenchError

Taylor = Literal["vectorize", "param_first", "param_second", "param_mix"]
Reduction = Literal["sum", "mean", "max", "prod"]

BATCH_TOKENS = {"cpu": 512}
"""Tokens of a forward and backward pass; on other devices 2048. Enough to keep the matrix products busy."""
CHUNK = 1 << 16
"""Weights that are scored at once: what is computed from them stays in the cache."""


class Member(NamedTuple):
    """A weight that loses rows (dim 0) or columns (dim 1) with a group; 1-D for a norm. ``name`` is for people."""

    name: str
    weight: torch.nn.Parameter
    dim: int


def taylor_vector(
    weight: torch.Tensor,
    first: torch.Tensor | None,
    second: torch.Tensor | None,
    taylor: Taylor,
    dim: int,
) -> torch.Tensor:
    """Importance of each row (``dim`` 0) or column (1) of ``weight``, float32 [rows or columns].

    ``first``: the gradient of the mean loss; ``second``: the mean over windows of the squared gradient, the diagonal of
    the empirical Fisher matrix; each of the weight's shape, and None where ``taylor`` does not ask for it. The paper's
    names: Vector is ``vectorize``, Element^1 ``param_first``, Element^2 ``param_mix``.
    """
    found = weight.new_zeros(weight.shape[dim], dtype=torch.float32)
    for part in _parts(weight):
        salience = _salience(
            weight.detach()[part].float(),
            None if first is None else first[part],
            None if second is None else second[part],
            taylor,
        )
        if weight.dim() == 1 or dim == 0:
            found[part] = salience if weight.dim() == 1 else salience.sum(1)
        else:
            found += salience.sum(0)
    return found.abs_()


def _salience(
    weight: torch.Tensor, first: torch.Tensor | None, second: torch.Tensor | None, taylor: Taylor
) -> torch.Tensor:
    if first is None or taylor == "param_second":
        return weight.square().mul_(_given(second))  # the mean of squares is never negative
    salience = weight * first
    if taylor == "param_mix":
        salience.addcmul_(weight.square(), _given(second), value=-0.5)
    return salience if taylor == "vectorize" else salience.abs_()


def norm_vector(weight: torch.Tensor, power: int, dim: int) -> torch.Tensor:
    """Sum of abs(w)^power over each row (``dim`` 0) or column (1), float32 [rows or columns]."""
    return _total(weight.detach().float().abs().pow_(power), dim)


def norm_vectors(members: Sequence[Member], power: int) -> list[torch.Tensor]:
    """`norm_vector` of each member. Raises PrunebenchError for a weight that is not finite."""
    return _finite(
        members,
        [norm_vector(member.weight, power, member.dim) for member in members],
        "its weights are",
    )


def taylor_vectors(
    model: Any,
    members: Sequence[Member],
    tokens: torch.Tensor,
    taylor: Taylor,
    seen: Callable[[int], None],
) -> list[torch.Tensor]:
    """`taylor_vector` of each member for the mean next-token loss over ``tokens``, int64 [windows, length].

    Gradients are computed for the members alone, so backpropagation ends at the lowest of them, and each is used up and
    freed as soon as it is there. The squares of second-order terms are those of each window by itself: the gradient of a
    linear is taken window by window from its inputs and output gradients, so that windows share a pass all the same.
    ``seen`` is called with the number of windows done. `requires_grad` and the modes are as before afterwards,
    gradients are gone. Raises PrunebenchError where the loss or a gradient is not finite.
    """
    windows, length = tokens.shape
    if length < 2:
        raise PrunebenchError(
            "windows of one token have no next token to predict",
            hint="make the calibration windows longer",
        )
    device = model.get_input_embeddings().weight.device
    batches = torch.split(tokens, max(1, BATCH_TOKENS.get(device.type, 2048) // length))
    sweep = _Sweep(members, taylor, windows, len(batches))
    done = 0
    with _gradients_for(model, sweep):
        for batch in batches:
            sweep.together = len(batch)
            loss = _loss(model, batch.to(device))
            if not math.isfinite(loss.item()):
                raise PrunebenchError(
                    f"the loss on calibration windows {done} to {done + len(batch) - 1} is not finite{_culprit(model)}",
                    hint="load the model in float32",
                )
            (loss * (len(batch) / windows)).backward()  # type: ignore[no-untyped-call]
            done += len(batch)
            seen(done)
    return _finite(members, sweep.vectors, "its gradient is")


def group_scores(
    vectors: Sequence[torch.Tensor],
    groups: int,
    channels: int,
    *,
    reduction: Reduction,
    fused: int = 1,
    misaligned: bool = False,
) -> torch.Tensor:
    """One score per group from the vectors of its members, float64 [groups]; the lowest goes first.

    ``channels``: those of one head, or 1 for an MLP. A vector [groups * r * channels] of r query heads per KV head is
    summed over them; then the members are reduced channel by channel, and the channels of a head are summed.
    ``fused``: so many members lie in the first vector, head by head. ``misaligned`` folds the query heads as the
    released code does: channel c is counted to KV channel c modulo groups * channels, though KV head j serves the query
    heads j * r to j * r + r - 1. Both agree where r is 1.
    """
    parts = [vector.double().cpu() for vector in vectors]
    if fused > 1:
        parts[:1] = [part.reshape(-1) for part in parts[0].view(groups, fused, channels).unbind(1)]
    folded = [
        part.view(-1, groups * channels).sum(0)
        if misaligned
        else part.view(groups, -1, channels).sum(1).reshape(groups * channels)
        for part in parts
    ]
    stacked = torch.stack(folded)  # [members, groups * channels]
    if reduction == "max":
        reduced = stacked.amax(0)
    elif reduction == "prod":
        reduced = stacked.prod(0)
    else:
        reduced = stacked.sum(0) if reduction == "sum" else stacked.mean(0)
    return reduced.view(groups, channels).sum(1)


@dataclass
class _Sums:
    """What is known of one weight's gradients so far; one weight can be two members (tied embeddings)."""

    places: list[int]
    left: int
    first: torch.Tensor | None = None
    second: torch.Tensor | None = None


class _Sweep:
    """Sums up gradients as the backward passes give them; the last one turns the sums into vectors.

    Autograd calls hooks with gradients switched off.
    """

    def __init__(
        self, members: Sequence[Member], taylor: Taylor, windows: int, passes: int
    ) -> None:
        self.members = members
        self.taylor = taylor
        self.windows = windows
        self.together = 1
        """Windows of the pass that runs."""
        self.vectors: list[torch.Tensor] = [torch.empty(0)] * len(members)
        self._sums: dict[int, _Sums] = {}
        for place, member in enumerate(members):
            self._sums.setdefault(id(member.weight), _Sums([], passes)).places.append(place)

    def install(self, model: Any) -> list[Any]:
        """Put hooks on the members, and give their handles. For second order the members are weights of linears."""
        if self.taylor not in {"param_second", "param_mix"}:
            weights = [self.members[sums.places[0]].weight for sums in self._sums.values()]
            for weight in weights:
                weight.requires_grad = True
            return [weight.register_post_accumulate_grad_hook(self._take) for weight in weights]  # type: ignore[no-untyped-call]
        linears = [
            module
            for module in model.modules()
            if id(getattr(module, "weight", None)) in self._sums
        ]
        return [
            *(linear.register_forward_pre_hook(_start_graph) for linear in linears),
            *(linear.register_forward_hook(self._watch) for linear in linears),
        ]

    def _take(self, weight: torch.nn.Parameter) -> None:
        """Use up the gradient that a backward pass has just left on ``weight``."""
        sums = self._sums[id(weight)]
        gradient = _given(weight.grad).float()
        weight.grad = None
        sums.first = gradient if sums.first is None else sums.first.add_(gradient)
        self._finish(weight, sums)

    def _watch(self, linear: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        output.register_hook(partial(self._take_windows, linear.weight, inputs[0].detach()))  # type: ignore[no-untyped-call]

    def _take_windows(
        self, weight: torch.nn.Parameter, inputs: torch.Tensor, gradient: torch.Tensor
    ) -> None:
        """Add up each window's gradient of ``weight`` [out, in], and its square.

        inputs [..., in], gradient of the output [..., out], where the windows of the pass follow each other.
        """
        sums = self._sums[id(weight)]
        if sums.second is None:
            sums.second = torch.zeros_like(weight, dtype=torch.float32)
            sums.first = torch.zeros_like(sums.second) if self.taylor == "param_mix" else None
        x = inputs.float().reshape(self.together, -1, weight.shape[1])
        y = gradient.float().reshape(self.together, -1, weight.shape[0])
        for part in _parts(weight):
            for window in range(self.together):
                one = y[window, :, part].t() @ x[window]  # [rows of the part, in]
                # The loss was divided by the number of windows, so this is the mean of squares over that number.
                sums.second[part].addcmul_(one, one, value=self.windows)
                if sums.first is not None:
                    sums.first[part].add_(one)
        self._finish(weight, sums)

    def _finish(self, weight: torch.nn.Parameter, sums: _Sums) -> None:
        sums.left -= 1
        if sums.left == 0:
            for place in sums.places:
                dim = self.members[place].dim
                self.vectors[place] = taylor_vector(
                    weight, sums.first, sums.second, self.taylor, dim
                )
            sums.first = sums.second = None


def _start_graph(_linear: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """Below the lowest member nothing asks for gradients: backpropagation ends at this input."""
    (tensor,) = inputs
    return (tensor if tensor.requires_grad else tensor.detach().requires_grad_(),)


def _parts(weight: torch.Tensor) -> Iterator[slice]:
    """Rows of ``weight`` that are worked on together."""
    rows = max(1, CHUNK // weight[0].numel()) if weight.device.type == "cpu" else len(weight)
    for start in range(0, len(weight), rows):
        yield slice(start, start + rows)


@contextmanager
def _gradients_for(model: Any, sweep: _Sweep) -> Iterator[None]:
    """Evaluation mode and gradients for the sweep's members alone; everything as before afterwards."""
    asked = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    training = [module for module in model.modules() if module.training]
    handles: list[Any] = []
    try:
        model.eval()
        for parameter, _ in asked:
            parameter.requires_grad = False
            parameter.grad = None
        handles += sweep.install(model)
        with torch.enable_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, wanted in asked:
            parameter.requires_grad = wanted
            parameter.grad = None
        for module in training:
            module.training = True


def _loss(model: Any, windows: torch.Tensor) -> torch.Tensor:
    """Mean next-token cross-entropy of ``windows``, int64 [windows, length], logits in float32."""
    logits = model(
        input_ids=windows[:, :-1], use_cache=False
    ).logits  # [windows, length - 1, vocabulary]
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())


def _finite(
    members: Sequence[Member], vectors: list[torch.Tensor], what: str
) -> list[torch.Tensor]:
    # From the top down: backpropagation carries a broken gradient to all layers below.
    for member, vector in zip(reversed(members), reversed(vectors), strict=True):
        if not bool(torch.isfinite(vector).all()):
            raise PrunebenchError(
                f"{member.name}: {what} not finite", hint="load the model in float32"
            )
    return vectors


def _culprit(model: Any) -> str:
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            return f", and {name} holds values that are not finite"
    return ""


def _total(salience: torch.Tensor, dim: int) -> torch.Tensor:
    return salience if salience.dim() == 1 else salience.sum(1 - dim)


def _given(tensor: torch.Tensor | None) -> torch.Tensor:
    if tensor is None:
        raise ValueError("this importance needs gradients that are not there")
    return tensor
