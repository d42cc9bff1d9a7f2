"""LLM-Pruner's importance: how much each row or column of a weight matters to the loss.

arXiv:2305.11627, equations 3 to 5; and how the vectors of coupled weights give each group one
score.
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
Wanted = Taylor | Literal["both"]
"""``both``: `vectorize` and `param_first` together, from one gradient."""
Reduction = Literal["sum", "mean", "max", "prod"]

BATCH_TOKENS = {"cpu": 512}
"""Tokens of one forward and backward pass, by device; enough to keep the matrix products busy."""
BATCH_TOKENS_ELSEWHERE = 2048
"""On devices that `BATCH_TOKENS` does not name."""
HALF_SCALE = 2.0**16
"""Factor of the mean loss of a pass in float16: without one, small gradients become zero."""
CHUNK = 1 << 16
"""Weights that are scored at once: few enough that intermediate results stay in the cache."""


class Member(NamedTuple):
    """A weight that loses rows (dim 0) or columns (dim 1) with a group; 1-D for a norm.

    ``name`` is for messages.
    """

    name: str
    weight: torch.nn.Parameter
    dim: int
    stacked: tuple[torch.Tensor, ...] = ()
    """Rows of each of several weights that are stacked in this one: queries, keys and values, or
    gate and up. Empty for the residual channels."""

    def split(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """The vector of each of these weights, group by group."""
        return [vector[rows.to(vector.device)] for rows in self.stacked] or [vector]


def taylor_vector(
    weight: torch.Tensor,
    first: torch.Tensor | None,
    second: torch.Tensor | None,
    taylor: Wanted,
    dim: int,
    power: int = 1,
) -> torch.Tensor:
    """Importance of each row (``dim`` 0) or column (1) of ``weight``, float32 [rows or columns].

    ``first``: the gradient g of the mean loss. ``second``: the mean over windows of the squared
    gradient, which is the diagonal F of the empirical Fisher matrix. Both have the weight's shape,
    and are None if ``taylor`` does not use them. In the paper's terms ``vectorize`` is Vector,
    ``param_first`` is Element^1 and ``param_mix`` is Element^2. ``power``: of each weight's
    importance, before they are added up. For ``both`` it is [2, rows or columns].
    """
    found = weight.new_zeros(weight.shape[dim], dtype=torch.float32)
    fine = torch.zeros_like(found)  # only ``both`` fills it
    for part in _parts(weight):
        salience = _salience(
            weight.detach()[part].float(),
            None if first is None else first[part],
            None if second is None else second[part],
            taylor,
        )
        if power != 1:
            salience.pow_(power)
        _add_sums(found, salience, part, dim)
        if taylor == "both":
            _add_sums(fine, salience.abs_(), part, dim)
    found.abs_()
    return torch.stack([found, fine]) if taylor == "both" else found


def _add_sums(found: torch.Tensor, salience: torch.Tensor, part: slice, dim: int) -> None:
    """Add the sums over these rows of a weight, [rows of the part, ...], to ``found``."""
    if salience.dim() == 1 or dim == 0:
        found[part] = salience if salience.dim() == 1 else salience.flatten(1).sum(1)
    else:
        found += salience.sum(0)


def _salience(
    weight: torch.Tensor, first: torch.Tensor | None, second: torch.Tensor | None, taylor: Wanted
) -> torch.Tensor:
    """What each weight adds to its row's or column's importance, of the weight's shape."""
    if first is None or taylor == "param_second":
        return weight.square().mul_(_given(second))  # w F w, never negative
    salience = weight * first
    if taylor == "param_mix":  # w g - w F w / 2
        salience.addcmul_(weight.square(), _given(second), value=-0.5)
    return salience if taylor in {"vectorize", "both"} else salience.abs_()


def norm_vector(weight: torch.Tensor, power: int, dim: int) -> torch.Tensor:
    """Sum of abs(w)^power over each row (``dim`` 0) or column (1), float32 [rows or columns]."""
    powers = weight.detach().float().abs().pow_(power)
    return powers if powers.dim() == 1 else powers.transpose(0, dim).flatten(1).sum(1)


def norm_vectors(members: Sequence[Member], power: int) -> list[torch.Tensor]:
    """`norm_vector` of each member. Raises PrunebenchError if a weight is not finite."""
    return _finite(
        members,
        [norm_vector(member.weight, power, member.dim) for member in members],
        "its weights are",
    )


def taylor_vectors(
    model: Any,
    members: Sequence[Member],
    tokens: torch.Tensor,
    taylor: Wanted,
    seen: Callable[[int], None],
    *,
    power: int = 1,
    batch_size: int | None = None,
    decay: float | None = None,
) -> list[torch.Tensor]:
    """`taylor_vector` of each member for the mean next-token loss, tokens int64 [windows, length].

    ``batch_size``: the gradient is a sum over batches of that many windows, of the gradient of each
    batch's mean loss, so windows in a smaller last batch count more; None: of the mean over all
    windows. For first order.
    ``decay``: a rho for the mean of the squared gradients, in which the first window then counts
    rho times and every other one rho * (1 - rho) times. For second order.

    Only members get gradients, so backpropagation ends at the lowest of them, and each gradient is
    used and freed as soon as it exists. Second-order terms need the squared gradient of every
    single window: that of a linear is computed window by window from its inputs and output
    gradients, so that several windows can share a pass. The gradients of all passes are added up in
    float32. In float16 the loss is scaled, and if a gradient overflows, all is computed again with
    a smaller factor. ``seen`` is called with the number of windows done. Afterwards `requires_grad`
    and the modes are as before, and there are no gradients. Raises PrunebenchError if the loss or a
    gradient is not finite.
    """
    windows, length = tokens.shape
    if length < 2:
        raise PrunebenchError(
            "windows of one token have no next token to predict",
            hint="make the calibration windows longer",
        )
    device = model.get_input_embeddings().weight.device
    together = max(1, BATCH_TOKENS.get(device.type, BATCH_TOKENS_ELSEWHERE) // length)
    passes = [
        (part, len(batch) * (length - 1))
        for batch in torch.split(tokens, batch_size or windows)
        for part in torch.split(batch, together)
    ]
    half = any(parameter.dtype == torch.float16 for parameter in model.parameters())
    scale = HALF_SCALE * len(passes) if half else 1.0
    while True:
        sweep = _Sweep(members, taylor, windows, len(passes), scale)
        sweep.power, sweep.decay = power, decay
        _run(model, sweep, passes, device, seen)
        if scale == 1 or all(bool(vector.isfinite().all()) for vector in sweep.vectors):
            return _finite(members, sweep.vectors, "its gradient is")
        scale = max(1.0, scale / 16)


def _run(
    model: Any,
    sweep: _Sweep,
    passes: Sequence[tuple[torch.Tensor, int]],
    device: torch.device,
    seen: Callable[[int], None],
) -> None:
    """Run all passes forward and backward, so that ``sweep`` has its vectors.

    ``passes``: windows, and the number of predicted tokens that the mean loss is over.
    """
    from prunebench import next_token_backward  # imports torch, which planning does without

    done = 0
    with _gradients_for(model, sweep):
        for batch, targets in passes:
            sweep.together = len(batch)
            # Passes add up to the gradient of the mean loss.
            loss = next_token_backward(model, batch.to(device), sweep.scale / targets)
            if not math.isfinite(loss):
                raise PrunebenchError(
                    f"the loss on calibration windows {done} to {done + len(batch) - 1} is not"
                    f" finite{_culprit(model)}",
                    hint="load the model in float32",
                )
            done += len(batch)
            sweep.done = done
            seen(done)


def group_scores(
    vectors: Sequence[torch.Tensor],
    groups: int,
    channels: int,
    *,
    reduction: Reduction,
    misaligned: bool = False,
) -> torch.Tensor:
    """One score per group from the vectors of its members, float64 [groups]; low ones go first.

    ``channels``: those of one head, or 1 for an MLP. A vector [groups * r * channels], for r query
    heads per KV head, is summed over r; then the members are reduced channel by channel, and the
    channels of each head are summed. A head of another size (latent attention) counts the same
    for each channel. ``misaligned`` adds up query heads as the released code does: it adds channel
    c to KV channel c modulo (groups * channels), although KV head j serves the query heads j * r to
    j * r + r - 1. Both agree if r is 1.
    """
    parts = [vector.double().cpu() for vector in vectors]
    for index, part in enumerate(parts):
        if len(part) % (groups * channels):
            total = part.view(groups, -1).sum(1, keepdim=True)
            parts[index] = (total / channels).expand(groups, channels).reshape(-1)
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
    """Sums over one weight's gradients so far.

    With tied embeddings one weight is two members: ``members`` has the indices of both.
    """

    members: list[int]
    passes_left: int
    first: torch.Tensor | None = None
    second: torch.Tensor | None = None


class _Sweep:
    """Adds up gradients while the backward passes produce them; the last pass gives the vectors.

    Its methods are hooks of autograd, which calls them with gradients switched off.
    """

    def __init__(
        self, members: Sequence[Member], taylor: Wanted, windows: int, passes: int, scale: float
    ) -> None:
        self.members = members
        self.taylor = taylor
        self.windows = windows
        self.scale = scale
        """The gradients are those of this factor times the mean loss."""
        self.power = 1
        """Of the importance of each weight: see `taylor_vector`."""
        self.together: int
        """Windows in the current pass."""
        self.done = 0
        """Windows in the passes before it."""
        self.decay: float | None = None
        self.vectors: list[torch.Tensor] = [torch.empty(0)] * len(members)
        self._sums: dict[int, _Sums] = {}
        for index, member in enumerate(members):
            self._sums.setdefault(id(member.weight), _Sums([], passes)).members.append(index)

    def install(self, model: Any) -> list[Any]:
        """Put hooks on the members and return their handles.

        For second order all members must be weights of linears.
        """
        if self.taylor not in {"param_second", "param_mix"}:
            weights = [self.members[sums.members[0]].weight for sums in self._sums.values()]
            for weight in weights:
                weight.requires_grad = True
            return [self._hook(weight) for weight in weights]
        linears = [
            module
            for module in model.modules()
            if id(getattr(module, "weight", None)) in self._sums
        ]
        return [
            *(linear.register_forward_pre_hook(_start_graph) for linear in linears),
            *(linear.register_forward_hook(self._watch) for linear in linears),
        ]

    def _hook(self, weight: Any) -> Any:
        return weight.register_post_accumulate_grad_hook(self._take)

    def _take(self, weight: torch.nn.Parameter) -> None:
        """Add the gradient that a backward pass has just put on ``weight``, and free it."""
        sums = self._sums[id(weight)]
        gradient = _given(weight.grad).float()
        weight.grad = None
        if self.scale != 1:
            gradient.div_(self.scale)
        sums.first = gradient if sums.first is None else sums.first.add_(gradient)
        self._finish(weight, sums)

    def _watch(self, linear: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        take: Any = partial(self._take_windows, linear.weight, inputs[0].detach())
        if not isinstance(linear, torch.nn.Linear):  # a Conv1D: its weight is [in, out]
            take = partial(self._take_transposed, linear.weight, inputs[0].detach())
        output.register_hook(take)  # type: ignore[no-untyped-call]

    def _take_transposed(
        self, weight: torch.nn.Parameter, inputs: torch.Tensor, gradient: torch.Tensor
    ) -> None:
        self._take_windows(weight, gradient, inputs)

    def _take_windows(
        self, weight: torch.nn.Parameter, inputs: torch.Tensor, gradient: torch.Tensor
    ) -> None:
        """Add up each window's gradient of ``weight`` [out, in], and its square.

        inputs [..., in] and the gradient of the output [..., out] hold the windows of the pass in
        order.
        """
        sums = self._sums[id(weight)]
        if sums.second is None:
            sums.second = torch.zeros_like(weight, dtype=torch.float32)
            sums.first = torch.zeros_like(sums.second) if self.taylor == "param_mix" else None
        x = inputs.float().reshape(self.together, -1, weight.shape[1])  # [windows, length, in]
        y = gradient.float().reshape(self.together, -1, weight.shape[0])  # [windows, length, out]
        if self.scale != 1:
            y = y / self.scale
        for part in _parts(weight):
            for window in range(self.together):
                one = y[window, :, part].t() @ x[window]  # [rows of the part, in]
                # The loss was divided by the number of windows n, so `one` is g / n of this window,
                # and n * one^2 = g^2 / n adds up to the mean of squares.
                sums.second[part].addcmul_(one, one, value=self.windows * self._counts(window))
                if sums.first is not None:
                    sums.first[part].add_(one)
        self._finish(weight, sums)

    def _counts(self, window: int) -> float:
        """How often a window of the current pass counts in the mean of squared gradients."""
        if self.decay is None:
            return 1.0
        return self.decay if self.done + window == 0 else self.decay * (1 - self.decay)

    def _finish(self, weight: torch.nn.Parameter, sums: _Sums) -> None:
        sums.passes_left -= 1
        if sums.passes_left == 0:
            for index in sums.members:
                dim = self.members[index].dim
                self.vectors[index] = taylor_vector(
                    weight, sums.first, sums.second, self.taylor, dim, self.power
                )
            sums.first = sums.second = None


def _start_graph(_linear: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """Start the graph at this input if nothing below requires gradients: so it ends here too."""
    (tensor,) = inputs
    return (tensor if tensor.requires_grad else tensor.detach().requires_grad_(),)


def _parts(weight: torch.Tensor) -> Iterator[slice]:
    """Slices of rows that are scored together."""
    rows = max(1, CHUNK // weight[0].numel()) if weight.device.type == "cpu" else len(weight)
    for start in range(0, len(weight), rows):
        yield slice(start, start + rows)


@contextmanager
def _gradients_for(model: Any, sweep: _Sweep) -> Iterator[None]:
    """Evaluation mode, and gradients for the sweep's members only; restored afterwards."""
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


def _finite(
    members: Sequence[Member], vectors: list[torch.Tensor], what: str
) -> list[torch.Tensor]:
    # From the last layer down: backpropagation carries a broken gradient to all layers before it.
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


def _given(tensor: torch.Tensor | None) -> torch.Tensor:
    if tensor is None:
        raise ValueError("this importance needs gradients that are not there")
    return tensor
