"""The execution forms of generation, and the choice of the fastest that gives the same tokens.

The prompt phase is the same in every form: the model's own forward pass into a growing KV cache.
The forms differ in what a generated token costs besides reading the weights. An eager pass runs
Python code and some hundred kernel launches per layer between two tokens; on a small model that
hides what pruning saves.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import StaticCache

from prunebench.errors import PrunebenchError
from prunebench.experiment.measures import FASTEST, Execution, Form
from prunebench.measure.speed.kv_cache import cache_maker
from prunebench.measure.speed.lean_decoder import FAMILIES, Lean, most_likely
from prunebench.measure.speed.products import Products
from prunebench.measure.speed.recorded_decoder import RecordedLean
from prunebench.measure.speed.unavailable import UnavailableError
from prunebench.model.placement import is_dispatched


class Decoder(Protocol):
    """Greedy decoding of one model at one shape: a prompt, then one token at a time.

    The tensor that `step` returns may be overwritten by the next call.
    """

    def prompt(self, tokens: Tensor) -> Tensor:
        """int64 [batch, prompt] -> the first new token, [batch, 1]. Starts a new sequence."""

    def step(self, tokens: Tensor) -> Tensor:
        """The last token of each sequence, int64 [batch, 1] -> the next one, [batch, 1]."""


class Eager:
    """The model's own forward pass for every token, with a KV cache that grows."""

    def __init__(self, model: Any) -> None:
        self._forward = forward_of(model)
        self._empty = cache_maker(model)
        self.cache = self._empty()

    def prompt(self, tokens: Tensor) -> Tensor:
        self.cache = self._empty()
        return self._forward(tokens, self.cache)

    def step(self, tokens: Tensor) -> Tensor:
        return self._forward(tokens, self.cache)


class Static:
    """The model's own forward pass with a KV cache of fixed size; ``wrap`` can compile it.

    Raises UnavailableError if a layer has a sliding window shorter than ``length``: its cache would
    roll over.
    """

    def __init__(self, model: Any, length: int, wrap: Callable[..., Any] | None = None) -> None:
        self._eager = Eager(model)
        self._forward = forward_of(model) if wrap is None else wrap(forward_of(model))
        self._cache = StaticCache(config=model.config, max_cache_len=length)
        for number, layer in enumerate(self._cache.layers):
            if hasattr(layer, "recurrent_states"):
                raise UnavailableError(f"layer {number} has a state that is no KV cache")
            if layer.is_sliding and layer.max_cache_len < length:
                raise UnavailableError(
                    f"layer {number} attends to a window of {layer.max_cache_len} tokens only"
                )

    def prompt(self, tokens: Tensor) -> Tensor:
        first = self._eager.prompt(tokens)
        self._cache.reset()  # keeps the addresses, on which a compiled step depends
        for fixed, grown in zip(self._cache.layers, self._eager.cache.layers, strict=True):
            if grown.keys is not None:
                fixed.update(grown.keys, grown.values)
        return first

    def step(self, tokens: Tensor) -> Tensor:
        return self._forward(tokens, self._cache)


class Compiled(Static):
    """`torch.compile` of the whole step over a static KV cache; on a GPU as a CUDA graph."""

    def __init__(self, model: Any, length: int) -> None:
        self._clones = model.device.type == "cuda"
        mode = "reduce-overhead" if self._clones else None

        def wrap(forward: Callable[..., Any]) -> Any:
            return torch.compile(forward, dynamic=False, mode=mode)

        super().__init__(model, length, wrap)

    def step(self, tokens: Tensor) -> Tensor:
        if self._clones:  # every replay writes its result to the same address
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            return super().step(tokens).clone()
        return super().step(tokens)


class CudaGraph:
    """The lean step, recorded once as a CUDA graph and replayed for every token."""

    def __init__(self, model: Any, batch: int, length: int) -> None:
        if model.device.type != "cuda":
            raise UnavailableError("CUDA graphs need a CUDA GPU")
        self._lean = Lean(model, batch, length, fixed=True)
        self._tokens = torch.zeros(batch, 1, dtype=torch.long, device=model.device)
        self._graph: Any = None
        self._next = self._tokens

    def prompt(self, tokens: Tensor) -> Tensor:
        first = self._lean.prompt(tokens)
        if self._graph is None:
            self._record(first, tokens.shape[1])
        return first

    def step(self, tokens: Tensor) -> Tensor:
        self._tokens.copy_(tokens)
        self._graph.replay()
        return self._next

    def _record(self, first: Tensor, at: int) -> None:
        """Record the step. The keys and values that this writes are overwritten by real steps."""
        self._tokens.copy_(first)
        # Kernels that run for the first time load code and allocate, which a capture forbids, so
        # they run once before. torch asks for a side stream, for that run as for the capture.
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._lean.step(self._tokens)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._next = self._lean.step(self._tokens)
        self._lean.rewind(at)


def decoder(model: Any, form: Form, batch: int, length: int) -> Decoder:
    """``model`` in an execution form, for ``batch`` sequences of up to ``length`` tokens.

    Raises UnavailableError, with the reason, if the model cannot run in this form on its device.
    """
    if form == "eager":
        return Eager(model)
    if form == "static":
        return Static(model, length)
    if form in {"lean", "lean-packed"}:
        known = model.config.model_type in FAMILIES
        lean = Lean if known else RecordedLean
        return lean(model, batch, length, packed=form == "lean-packed")
    if form == "compiled":
        return Compiled(model, length)
    return CudaGraph(model, batch, length)


@dataclass(frozen=True)
class ExecutionChoice:
    """The form in which all models of one comparison run."""

    form: Form
    decoders: list[Decoder]
    same_tokens: bool | None = None
    """Whether the tokens are those of eager decoding, apart from ties; None for eager itself."""
    notes: list[str] = field(default_factory=list)
    """Why faster forms were not taken, or what is odd about this one."""

    @property
    def products(self) -> Products | None:
        """The products of the first model, if a lean form was chosen."""
        first = self.decoders[0]
        return first.products if isinstance(first, Lean | RecordedLean) else None


@torch.inference_mode()
def choose(
    models: Sequence[Any], prompt: Tensor, new_tokens: int, asked: Execution = FASTEST
) -> ExecutionChoice:
    """Choose one execution form for all ``models``.

    'fastest' takes the first form that every model can run with the same greedy tokens as eagerly:
    'cuda-graph' or 'lean' on a GPU, 'lean-packed' or 'lean' elsewhere, else 'eager'. It never takes
    'static', which saves little, or 'compiled', which takes minutes to compile; a suite can ask for
    them by name.

    Tokens are compared along the eagerly generated sequence, because after one difference all later
    tokens would differ. A different token counts as the same if eager's own logits for the two
    differ by no more than rounding. ``prompt`` is int64 [batch, prompt] on the models' device.

    Raises PrunebenchError if a model cannot run in the form that is asked for by name.
    """
    batch, length = prompt.shape[0], prompt.shape[1] + new_tokens
    notes: list[str] = []
    refused: dict[str, list[Form]] = {}  # by the reason, which two forms may share
    if any(is_dispatched(model) for model in models):
        if asked not in {FASTEST, "eager"}:
            raise PrunebenchError(
                f"execution '{asked}': the model is on several devices",
                hint="`execution: eager` is the only form there",
            )
        notes.append("the model is on several devices: eager is the only form there")
        asked = "eager"
    forms = candidates(prompt.device.type) if asked == FASTEST else [asked]
    for form in forms:
        if form == "eager":
            break
        try:
            decoders = [decoder(model, form, batch, length) for model in models]
            if asked == FASTEST and form == "lean-packed":
                _check_copies(decoders)
            differing = _differing(models, decoders, prompt, new_tokens)
        except UnavailableError as reason:
            if asked != FASTEST:
                raise PrunebenchError(
                    f"execution '{form}': {reason}",
                    hint="`execution: fastest` takes what the model can run",
                ) from reason
            refused.setdefault(str(reason), []).append(form)
            continue
        if differing is None:
            notes += _in_words(refused)
            return ExecutionChoice(form, decoders, same_tokens=True, notes=notes)
        if asked != FASTEST:
            return ExecutionChoice(form, decoders, same_tokens=False, notes=[differing])
        refused.setdefault(differing, []).append(form)
    notes += _in_words(refused)
    return ExecutionChoice("eager", [Eager(model) for model in models], notes=notes)


def _check_copies(decoders: Sequence[Decoder]) -> None:
    """Raise UnavailableError if no model holds a second copy: then it is plain 'lean'."""
    if not any(
        isinstance(each, Lean | RecordedLean) and each.products.copied_bytes for each in decoders
    ):
        raise UnavailableError("no product is faster with a second copy of its weight")


def _in_words(refused: dict[str, list[Form]]) -> list[str]:
    return [f"{', '.join(forms)}: {reason}" for reason, forms in refused.items()]


def candidates(device: str) -> list[Form]:
    """The forms that 'fastest' tries, in this order."""
    first: Form = "cuda-graph" if device == "cuda" else "lean-packed"
    return [first, "lean", "eager"]


def forward_of(model: Any) -> Callable[[Tensor, Any], Tensor]:
    """A function (tokens, cache) -> most likely next token, [batch, 1]; it extends the cache."""
    logits = logits_of(model)

    def forward(tokens: Tensor, cache: Any) -> Tensor:
        return most_likely(logits(tokens, cache))

    return forward


def logits_of(model: Any) -> Callable[[Tensor, Any], Tensor]:
    """A function (tokens, cache) -> logits of the last position, [batch, vocabulary]."""
    # Without this the head runs over the whole prompt; nearly every family has the argument.
    last = (
        {"logits_to_keep": 1}
        if "logits_to_keep" in inspect.signature(model.forward).parameters
        else {}
    )

    def last_logits(tokens: Tensor, cache: Any) -> Tensor:
        logits: Tensor = model(tokens, past_key_values=cache, use_cache=True, **last).logits
        return logits[:, -1]

    return last_logits


def _differing(
    models: Sequence[Any], decoders: list[Decoder], prompt: Tensor, new_tokens: int
) -> str | None:
    """A sentence that says where a decoder's tokens first differ from eager; None if nowhere."""
    for model, each in zip(models, decoders, strict=True):
        compute, cache = logits_of(model), cache_maker(model)()
        tokens = prompt
        for number in range(new_tokens):
            found = each.step(tokens) if number else each.prompt(tokens)  # [batch, 1]
            logits = compute(tokens, cache)  # [batch, vocabulary]
            tokens = most_likely(logits)
            # Sums of another order differ by some units in the last place of the largest logit.
            rounding = 4 * torch.finfo(logits.dtype).eps * logits.abs().amax(-1, keepdim=True)
            if bool((logits.gather(1, tokens) - logits.gather(1, found) > rounding).any()):
                return (
                    "other tokens than eager decoding, "
                    f"first at new token {number + 1} of {new_tokens}"
                )
    return None
