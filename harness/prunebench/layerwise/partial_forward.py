"""The model in pieces: one layer of one batch at a time, with or without its sub-blocks, and the loss of what comes out.

A method that compares many variants of a model need not run what they have in common again. Nor must it know each
variant's loss: a lower bound, at a fraction of the vocabulary head's cost, often tells that a variant is no better.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from prunebench.errors import PrunebenchError
from prunebench.layerwise.capture import Call, batches_of, capture, run
from prunebench.layerwise.device_moves import moved, placed
from prunebench.model.anatomy import anatomy
from prunebench.model.families import KINDS, Kind
from prunebench.model.surgery import check_bypass, without

if TYPE_CHECKING:
    from prunebench.model.anatomy import Anatomy

_LOGITS = {"cpu": 1 << 23, "cuda": 1 << 27}
"""Logits that are held at a time: on a CPU few enough to stay in its caches."""

SUBSET = 2048
"""Tokens, besides those that are predicted, whose logits a bound computes one by one."""


@dataclass(frozen=True)
class Tangent:
    """What bounds the loss of one batch from below, taken at the hidden states of one variant of the model."""

    subset: torch.Tensor
    """Token ids in ascending order, int64 [k]: all that are predicted, and those with the most probability."""
    slope: torch.Tensor
    """Gradient of the other tokens' log-sum-exp by the head's input, [positions, hidden]."""
    offset: torch.Tensor
    """Their log-sum-exp is at least input . slope + offset, [positions]."""


class Stream:
    """A model over calibration windows, piece by piece. The model itself stays as it is.

    ``tokens``: int64 [windows, length]. ``device``: where layers compute, one at a time; None: where the model lies.
    A state of batch ``b`` is [windows of the batch, length, hidden] on the model's device.
    """

    def __init__(
        self, model: Any, tokens: torch.Tensor, device: torch.device | None = None
    ) -> None:
        if tokens.shape[1] < 2:
            raise PrunebenchError(
                "a window of one token has nothing to predict", hint="ask for longer windows"
            )
        self._model = model
        self._tokens = tokens
        self._device = device
        self._parts: Anatomy = anatomy(model)
        self._batches = batches_of(model, tokens)
        self._calls: list[list[Call]] = capture(model, self._parts, tokens)[1]
        self._block_tokens = self._head_tokens = 0

    @property
    def layers(self) -> int:
        return len(self._calls)

    @property
    def parallel(self) -> bool:
        """Whether attention and MLP of a layer both read the layer's input."""
        return self._parts.parallel

    @property
    def targets(self) -> int:
        """Tokens that are predicted in all windows."""
        return int(self._tokens[:, 1:].numel())

    @property
    def decoder_passes(self) -> float:
        """Layer runs so far, in runs of all layers over all windows; a layer without one sub-block counts half."""
        return self._block_tokens / (self._tokens.numel() * self.layers * len(KINDS))

    @property
    def head_passes(self) -> float:
        """Runs of the whole vocabulary head so far, in runs over all windows."""
        return self._head_tokens / self.targets

    def start(self) -> list[torch.Tensor]:
        """The input of layer 0 for every batch, fresh tensors."""
        return capture(self._model, self._parts, self._tokens)[0]

    def run(
        self, layer: int, batch: int, hidden: torch.Tensor, without_kinds: Collection[Kind] = ()
    ) -> torch.Tensor:
        """The output of a layer for a state of this batch, as if ``without_kinds`` were removed from the layer.

        Raises PrunebenchError where sub-blocks cannot go one by one (OPT-350m).
        """
        parts = self._parts
        if without_kinds:
            check_bypass(parts)
        left = sum(
            parts.has(parts.layers[layer], kind) for kind in KINDS if kind not in without_kinds
        )
        if not left:
            return hidden
        self._block_tokens += left * hidden.shape[0] * hidden.shape[1]
        call = self._calls[layer][batch]
        with without(parts, layer, tuple(without_kinds)) as module, placed(module, self._device):
            there = Call(moved(call.args, self._device), moved(call.kwargs, self._device))
            return moved(run(module, moved(hidden, self._device), there), hidden.device)  # type: ignore[no-any-return]

    def nll(self, batch: int, hidden: torch.Tensor, *, model_dtype: bool = False) -> float:
        """Sum over a batch of -ln p(next token), from the last layer's output; softmax in float32 at least.

        ``model_dtype``: softmax and logarithm in the model's own dtype, as BlockPruner's released code has them.
        """
        inputs, targets = self._predicting(batch, hidden)
        self._head_tokens += len(targets)
        total = torch.zeros((), dtype=torch.float64, device=inputs.device)
        for rows, wanted in zip(self._chunks(inputs), self._chunks(targets), strict=True):
            if model_dtype:  # the classes as the second of three dimensions: torch rounds otherwise where they are the last
                losses = torch.nn.functional.cross_entropy(
                    self._parts.head(rows).T[None], wanted[None], reduction="none"
                )
            else:
                losses = torch.nn.functional.cross_entropy(
                    self._logits(rows), wanted, reduction="none"
                )
            total += losses.double().sum()
        return float(total)

    def tangent(self, batch: int, hidden: torch.Tensor) -> Tangent | None:
        """What `bound` needs, taken at the last layer's output of one variant; None where the vocabulary is small."""
        inputs, targets = self._predicting(batch, hidden)
        weight = self._parts.head.weight  # [vocabulary, hidden]
        predicted = torch.unique(targets)
        size = SUBSET + len(predicted)
        if weight.shape[0] < 4 * size:
            return None
        self._head_tokens += 3 * len(targets)  # the logits twice, and once as much for the slopes
        mass = torch.zeros(weight.shape[0], device=inputs.device)
        for rows in self._chunks(inputs):
            mass += self._logits(rows).softmax(dim=-1).sum(dim=0)
        mass[predicted] = torch.inf
        subset = mass.topk(size).indices.sort().values
        slopes, offsets = [], []
        for rows in self._chunks(inputs):
            others = self._logits(rows).index_fill_(1, subset, -torch.inf)
            slopes.append(others.softmax(dim=-1).to(weight.dtype) @ weight)
            offsets.append(others.logsumexp(dim=-1) - _dot(rows, slopes[-1]))
        return Tangent(subset, torch.cat(slopes), torch.cat(offsets))

    def bound(self, batch: int, hidden: torch.Tensor, tangent: Tangent) -> float:
        """A number that `nll` is not below, but for rounding.

        -ln p = lse(all logits) - target's logit. The subset's part of the log-sum-exp is computed; that of the other
        tokens is convex in the head's input, so it lies above its tangent, however far the variant is from the one
        where that was taken.
        """
        inputs, targets = self._predicting(batch, hidden)
        head = self._parts.head
        bias = None if head.bias is None else head.bias[tangent.subset]
        logits = _wide(torch.nn.functional.linear(inputs, head.weight[tangent.subset], bias))
        total = torch.logaddexp(
            logits.logsumexp(dim=-1), _dot(inputs, tangent.slope) + tangent.offset
        )
        target = logits.gather(1, torch.searchsorted(tangent.subset, targets)[:, None])[:, 0]
        return float((total - target).double().sum())

    def _predicting(self, batch: int, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The head's inputs at all positions that have a next token, [positions, hidden], and these tokens."""
        norm = self._parts.final_norm
        inputs = hidden[:, :-1] if norm is None else norm(hidden[:, :-1])
        owner = self._model.get_submodule(self._parts.family.norm.rpartition(".")[0])
        project = getattr(owner, "project_out", None)  # OPT-350m
        inputs = inputs if project is None else project(inputs)
        return inputs.flatten(0, 1), self._batches[batch][:, 1:].flatten()

    def _logits(self, rows: torch.Tensor) -> torch.Tensor:
        return _wide(self._parts.head(rows))

    def _chunks(self, rows: torch.Tensor) -> Iterator[torch.Tensor]:
        limit = _LOGITS.get(rows.device.type, 1 << 24)
        return iter(torch.split(rows, max(1, limit // self._parts.head.weight.shape[0])))


def _wide(values: torch.Tensor) -> torch.Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _dot(rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    return (_wide(rows) * _wide(others)).sum(dim=-1)
