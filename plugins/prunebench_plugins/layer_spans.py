"""States on both sides of runs of consecutive decoder layers."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from prunebench import Context


def observe_spans(
    model: Any,
    context: Context,
    span: int,
    see: Callable[[int, torch.Tensor, torch.Tensor], None],
    *,
    last_token: bool = False,
) -> None:
    """Call ``see(first, before, after)`` for each batch and each run of ``span`` layers.

    ``before`` is the input of layer ``first``, ``after`` the output of layer first + span - 1, both
    [windows of the batch, length, hidden], or [windows, hidden] of the ``last_token``. The last
    layer's output has not passed the final norm. At most the states of ``span`` layers are kept.
    """
    layers = len(context.kept_layers)
    batches: Counter[int] = Counter()  # by layer: how many have passed it
    inputs: dict[int, deque[torch.Tensor]] = {}  # by batch: inputs of the last `span` layers

    def step(layer: int, before: torch.Tensor, after: torch.Tensor) -> None:
        if last_token:
            before, after = before[:, -1], after[:, -1]
        # All batches of a layer may come before the next layer, or all layers of a batch before
        # the next batch; counting tells which batch this is.
        if span > 1:
            batch = batches[layer]
            batches[layer] += 1
            kept = inputs.setdefault(batch, deque(maxlen=span))
            kept.append(before.clone())  # the walk overwrites states in place
            if len(kept) < span:
                return
            before = kept[0]
            if layer == layers - 1:
                del inputs[batch]
        see(layer - span + 1, before, after)

    context.observe_layers(model, step)


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Cosine between the rows of two tensors [..., hidden].

    It takes about half the time of `torch.nn.functional.cosine_similarity` on a CPU.
    """
    norms = torch.linalg.vector_norm(a, dim=-1) * torch.linalg.vector_norm(b, dim=-1)
    # Not `einsum`: with several windows it takes five times as long.
    found: torch.Tensor = torch.linalg.vecdot(a, b) / norms.clamp_min(torch.finfo(norms.dtype).tiny)
    return found.clamp(-1, 1)
