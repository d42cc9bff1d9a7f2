"""Run a model in pieces: one layer of one batch at a time, with or without its sub-blocks.

A method that compares many variants of a model need not repeat what the variants have in common.
Nor does it need the exact loss of each: a lower bound, for a fraction of the vocabulary head's
cost, often shows that a variant is no better.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from prunebench.errors import PrunebenchError
from prunebench.layerwise.capture import Call, batches_of, capture, replaced_layers, run_layer
from prunebench.layerwise.device_moves import moved, on_device
from prunebench.model.anatomy import Block, anatomy
from prunebench.model.batches import tokens_per_batch, windows_per_batch
from prunebench.model.coupling.sub_block import KINDS, Kind
from prunebench.model.surgery import check_bypass, without

if TYPE_CHECKING:
    from prunebench.model.anatomy import Anatomy

LOGITS_AT_ONCE = {"cpu": 1 << 23, "cuda": 1 << 27}
"""Logits that are in memory at a time, by device: on a CPU few enough to stay in its caches."""
LOGITS_ELSEWHERE = 1 << 24
"""On devices that `LOGITS_AT_ONCE` does not name."""

SUBSET = 2048
"""Tokens, besides the predicted ones, whose logits a lower bound computes one by one."""
SUBSETS_THAT_PAY = 4
"""A lower bound pays if the vocabulary has this many times as many tokens as the subset."""

LowerBound = Callable[["torch.Tensor"], float]
"""From the last layer's output for a batch to a number that its loss is not below."""


@dataclass(frozen=True)
class _Tangent:
    """What bounds the loss of one batch from below, computed from one variant's hidden states."""

    subset: torch.Tensor
    """Token ids in ascending order, int64 [k]: the predicted ones, and the most probable others."""
    slope: torch.Tensor
    """Gradient of the other tokens' log-sum-exp by the head's input, [positions, hidden]."""
    offset: torch.Tensor
    """[positions]; the others' log-sum-exp is at least input . slope + offset."""


class PartialForward:
    """A model over calibration windows, piece by piece. It does not change the model.

    ``tokens``: int64 [windows, length]. ``device``: where layers compute, one at a time; None:
    where the model is. The states of a batch are [windows of the batch, length, hidden] on the
    model's device.
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
        # Half as many as usual: behind each batch a variant may be given up.
        self._windows = max(1, windows_per_batch(tokens.shape[1], model.device) // 2)
        self._batches = batches_of(model, tokens, self._windows)
        self._calls: list[list[Call]] = capture(model, self._parts, tokens, self._windows).calls
        self._together: dict[int, tuple[int, list[Call]]] = {}
        """How layers are called for several variants: by their number, the last batch and calls."""
        self._block_tokens = self._head_tokens = 0
        self._is_plain = self._has_plain_logits()

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return len(self._calls)

    @property
    def parallel(self) -> bool:
        """Whether attention and MLP of a layer both read the layer's input."""
        return self._parts.parallel

    @property
    def targets(self) -> int:
        """Number of predicted tokens in all windows."""
        return int(self._tokens[:, 1:].numel())

    @property
    def variants_at_once(self) -> int:
        """How many variants `run` should take together: as many as fill a batch of the device.

        1 in half precision, where rounding depends too much on how many there are.
        """
        first = self._batches[0]
        if self._parts.head.weight.dtype.itemsize < torch.float32.itemsize:
            return 1
        return max(1, tokens_per_batch(self._device or first.device) // first.numel())

    @property
    def decoder_passes(self) -> float:
        """Layer runs so far, in units of one run of all layers over all windows.

        A layer without one of its sub-blocks counts half.
        """
        return self._block_tokens / (self._tokens.numel() * self.layers * len(KINDS))

    @property
    def head_passes(self) -> float:
        """Runs of the whole vocabulary head so far, in units of one run over all windows."""
        return self._head_tokens / self.targets

    def start(self) -> list[torch.Tensor]:
        """The input of layer 0 for every batch, as new tensors."""
        return capture(self._model, self._parts, self._tokens, self._windows).states

    def run(
        self, layer: int, batch: int, hidden: torch.Tensor, without_kinds: Collection[Kind] = ()
    ) -> torch.Tensor:
        """The layer's output for states of this batch, as if ``without_kinds`` were removed.

        ``hidden`` may be several variants' states, one after the other: [variants * windows of the
        batch, length, hidden]. On short windows that is faster than one by one.
        Raises PrunebenchError if sub-blocks of this model cannot be removed one by one (OPT-350m).
        """
        parts = self._parts
        if without_kinds:
            check_bypass(parts, [Block(layer, kind) for kind in without_kinds])
        there = [kind for kind in KINDS if parts.has(parts.layers[layer], kind)]
        # A layer that was replaced, or of a family without known sub-blocks, runs whole.
        left = sum(kind not in without_kinds for kind in there) if there else len(KINDS)
        if not left:
            return hidden
        self._block_tokens += left * hidden.shape[0] * hidden.shape[1]
        call = self._call(layer, batch, hidden.shape[0] // len(self._batches[batch]))
        with without(parts, layer, tuple(without_kinds)) as module, on_device(module, self._device):
            here = Call(moved(call.args, self._device), moved(call.kwargs, self._device))
            output = run_layer(module, moved(hidden, self._device), here)
            return moved(output, hidden.device)  # type: ignore[no-any-return]

    def _call(self, layer: int, batch: int, variants: int) -> Call:
        """How the model calls this layer if it runs this number of variants of a batch together."""
        if variants == 1:
            return self._calls[layer][batch]
        if variants not in self._together or self._together[variants][0] != batch:
            # The model makes masks and positions for this many windows itself: which of their
            # dimensions grow, and how, differs between families.
            tokens = self._batches[batch].repeat(variants, 1)
            calls = capture(self._model, self._parts, tokens, len(tokens)).calls
            self._together[variants] = batch, [call for [call] in calls]
        return self._together[variants][1][layer]

    def head_inputs(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the vocabulary head reads, from the last layer's output: after the final norm.

        It is `hidden_states[-1]` of transformers, [windows of the batch, length, hidden].
        """
        norm = self._parts.final_norm
        inputs = hidden if norm is None else norm(hidden)
        owner = self._model.get_submodule(self._parts.layers_path.rpartition(".")[0])
        project = getattr(owner, "project_out", None)  # OPT-350m
        return inputs if project is None else project(inputs)

    def nll(self, batch: int, hidden: torch.Tensor, *, model_dtype: bool = False) -> float:
        """Sum over a batch of -ln p(next token), from the last layer's output.

        The softmax is computed in float32, or float64 for a model of that type. ``model_dtype``:
        softmax and logarithm in the model's own dtype, as in BlockPruner's released code.
        """
        cross_entropy = torch.nn.functional.cross_entropy
        inputs, targets = self._predicting(batch, hidden)
        self._head_tokens += len(targets)
        if not self._is_plain:
            logits = self._own_logits(self._batches[batch], hidden)[:, :-1].flatten(0, 1)
            logits = logits if model_dtype else _wide(logits)
            return float(cross_entropy(logits, targets, reduction="none").double().sum())
        total = torch.zeros((), dtype=torch.float64, device=inputs.device)
        for rows, wanted in zip(self._chunks(inputs), self._chunks(targets), strict=True):
            # The released code's classes are the second of three dimensions, [1, vocabulary,
            # positions]: torch rounds differently if they are the last one.
            losses = (
                cross_entropy(self._parts.head(rows).T[None], wanted[None], reduction="none")
                if model_dtype
                else cross_entropy(self._logits(rows), wanted, reduction="none")
            )
            total += losses.double().sum()
        return float(total)

    def kl(self, batch: int, dense: torch.Tensor, others: Sequence[torch.Tensor]) -> list[float]:
        """Sum over a batch of KL(dense ‖ other) in nats, for each of several variants.

        ``dense`` and ``others`` are last layers' outputs. The distributions are those of the next
        token at the positions that `nll` counts, in at least float32. The head runs once for each
        variant, and once for the dense model.
        """
        states = (dense, *others)
        if self._is_plain:
            rows = [self._predicting(batch, each)[0] for each in states]
        else:
            ids = self._batches[batch]
            rows = [self._own_logits(ids, each)[:, :-1].flatten(0, 1) for each in states]
        logits = self._logits if self._is_plain else _wide
        self._head_tokens += len(rows) * len(rows[0])
        totals = torch.zeros(len(others), dtype=torch.float64, device=dense.device)
        for here, *variants in zip(*map(self._chunks, rows), strict=True):
            wanted = logits(here).log_softmax(dim=-1)  # [positions, vocabulary]
            shares = wanted.exp().flatten()
            for number, each in enumerate(variants):
                found = logits(each).log_softmax(dim=-1)
                # `kl_div` would take the exponential again for each variant.
                apart = torch.sub(wanted, found, out=found)
                totals[number] += shares.dot(apart.flatten())
        return totals.tolist()

    def lower_bound(self, batch: int, hidden: torch.Tensor) -> LowerBound | None:
        """A function that bounds `nll` of this batch from below, for any variant of the model.

        It is exact, apart from rounding, at ``hidden``, the last layer's output of one variant, and
        close to the loss for similar ones. It costs three runs of the head now, and a small part of
        one for each use. None if the vocabulary is too small for that to pay.
        """
        inputs, targets = self._predicting(batch, hidden)
        weight = self._parts.head.weight  # [vocabulary, hidden]
        predicted = torch.unique(targets)
        size = SUBSET + len(predicted)
        if weight.shape[0] < SUBSETS_THAT_PAY * size or not self._is_plain:
            return None
        self._head_tokens += 3 * len(targets)  # the logits twice, and the slopes cost as much again
        mass = torch.zeros(weight.shape[0], device=inputs.device)
        for rows in self._chunks(inputs):
            mass += self._logits(rows).softmax(dim=-1).sum(dim=0)
        mass[predicted] = torch.inf  # predicted tokens are always in the subset
        subset = mass.topk(size).indices.sort().values
        slopes, offsets = [], []
        for rows in self._chunks(inputs):
            # f(x) = lse of the other tokens' logits; its gradient is softmax @ weight, so the
            # tangent at x0 is f(x0) + gradient . (x - x0) = gradient . x + offset.
            others = self._logits(rows).index_fill_(1, subset, -torch.inf)
            slopes.append(others.softmax(dim=-1).to(weight.dtype) @ weight)
            offsets.append(others.logsumexp(dim=-1) - _dot(rows, slopes[-1]))
        tangent = _Tangent(subset, torch.cat(slopes), torch.cat(offsets))
        return partial(self._bound, batch, tangent)

    def _bound(self, batch: int, tangent: _Tangent, hidden: torch.Tensor) -> float:
        """A number that `nll` is not below, apart from rounding.

        -ln p = lse(all logits) - target's logit. The subset's part of the log-sum-exp is computed.
        That of the other tokens is convex in the head's input, so it lies above its tangent, no
        matter how far this variant is from the one whose tangent it is.
        """
        inputs, targets = self._predicting(batch, hidden)
        head = self._parts.head
        bias = None if head.bias is None else head.bias[tangent.subset]
        # [positions, k], instead of [positions, vocabulary] for the exact loss
        logits = _wide(torch.nn.functional.linear(inputs, head.weight[tangent.subset], bias))
        total = torch.logaddexp(
            logits.logsumexp(dim=-1), _dot(inputs, tangent.slope) + tangent.offset
        )
        target = logits.gather(1, torch.searchsorted(tangent.subset, targets)[:, None])[:, 0]
        return float((total - target).double().sum())

    def _own_logits(self, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """The logits [windows, length, vocabulary] that the model itself makes of a last output."""
        last = len(self._parts.layers) - 1

        def hand_on(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
            if index == last:
                return hidden
            return args[0] if args else kwargs["hidden_states"]  # type: ignore[no-any-return]

        with torch.no_grad(), replaced_layers(self._parts, hand_on):
            return self._model(ids, use_cache=False).logits  # type: ignore[no-any-return]

    def _has_plain_logits(self) -> bool:
        """Whether logits are the head of the final norm; some models scale or cap them (Granite)."""
        config = self._model.config.get_text_config(decoder=True)
        if any(
            "logit" in name and isinstance(value, float) and value != 1.0
            for name, value in vars(config).items()
        ):
            return False
        ids = self._batches[0][:1, :16]
        generator = torch.Generator().manual_seed(0)
        states = capture(self._model, self._parts, self._tokens[:1, :16]).states[0]
        hidden = torch.randn(states.shape, generator=generator).to(states)
        found = _wide(self._parts.head(self.head_inputs(hidden)))
        return torch.allclose(_wide(self._own_logits(ids, hidden)), found, rtol=1e-3, atol=1e-3)

    def _predicting(self, batch: int, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The head's inputs where there is a next token, [positions, hidden], and these tokens."""
        inputs = self.head_inputs(hidden[:, :-1])
        return inputs.flatten(0, 1), self._batches[batch][:, 1:].flatten()

    def _logits(self, rows: torch.Tensor) -> torch.Tensor:
        return _wide(self._parts.head(rows))

    def _chunks(self, rows: torch.Tensor) -> Iterator[torch.Tensor]:
        limit = LOGITS_AT_ONCE.get(rows.device.type, LOGITS_ELSEWHERE)
        return iter(torch.split(rows, max(1, limit // self._parts.head.weight.shape[0])))


def _wide(values: torch.Tensor) -> torch.Tensor:
    """At least float32."""
    return values if values.dtype == torch.float64 else values.float()


def _dot(rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    return (_wide(rows) * _wide(others)).sum(dim=-1)
