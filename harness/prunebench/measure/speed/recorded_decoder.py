"""A decode step without the model's own Python, recorded from the model: for any family.

`recorded_step` notes the torch calls of one step. Here a model is made ready for that: attention
calls a function of ours through transformers' attention interface, norms and experts become one
call each. The calls are then made with the products that are fastest here; linears that read the
same input become one. Before anybody uses it, its logits are compared with the model's own.

A model is refused, with the reason, if its attention does not go through that interface or needs
more than queries, keys, values and a scale, if it has a window shorter than the sequence, if it
keeps a state that is no KV cache, or if two recordings differ.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import handle_torch_function
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from prunebench.errors import PrunebenchError
from prunebench.measure.speed.kv_cache import cache_config, cache_maker
from prunebench.measure.speed.lean_decoder import (
    RMSNorm,
    grouped_attention,
    is_hooked,
    most_likely,
    side_by_side,
)
from prunebench.measure.speed.products import Products
from prunebench.measure.speed.recorded_step import (
    Call,
    Recorder,
    Recording,
    Ref,
    difference,
    program,
    pruned,
    shared,
)
from prunebench.measure.speed.unavailable import UnavailableError
from prunebench.model.experts import SUMS, UNROUTED, find_experts
from prunebench.model.rotated import UnweightedNorm, epsilon_of, gain_of

IMPLEMENTATION = "prunebench_recorded"
"""The name of our attention among transformers' attention functions."""
_KNOWN = {
    "scaling",
    "dropout",
    "sliding_window",
    "is_causal",
    "position_ids",
    "use_cache",
    "logits_to_keep",
}
"""Arguments of an attention that are heeded here, or that change nothing in a decode step."""
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
_HALF = 3e-2
_CHECKED = 3
"""Tokens whose logits are compared with the model's own."""


class _Attend:
    """The attention of one layer over its KV cache, which it extends."""

    remembers = True
    __name__ = "attention"

    def __init__(self, place: _Place, scaling: float | None, length: int) -> None:
        self._place = place
        self._length = length
        self.scaling = scaling
        self.keys = self.values = torch.empty(0)

    def hold(self, keys: Tensor, values: Tensor) -> None:
        """Make room for keys and values of these shapes, [batch, key heads, any, head]."""
        for name, like in (("keys", keys), ("values", values)):
            shape = (*like.shape[:2], self._length, like.shape[3])
            if getattr(self, name).shape != shape:
                setattr(self, name, like.new_zeros(shape))

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """[batch, heads, 1, head] -> [batch, 1, heads, head]."""
        at = self._place.at
        # A Python number, so that only what is written already is read, and no mask is needed.
        self.keys[:, :, at] = keys[:, :, 0]
        self.values[:, :, at] = values[:, :, 0]
        seen_keys, seen_values = self.keys[:, :, : at + 1], self.values[:, :, : at + 1]
        mixed = grouped_attention(queries, seen_keys, seen_values, self.scaling)
        return mixed.reshape(len(queries), 1, queries.shape[1], -1)


class _Experts:
    """The routed experts of one layer, for few tokens: only what they are routed to is read."""

    __name__ = "experts"

    def __init__(self, module: Any) -> None:
        self._module = module
        # Token by token, so for a batch of one. Without second copies: which experts are needed
        # shows only in a step, and a copy that is made there would be in its time.
        self._products = Products(1, packed=False)
        self._known: dict[tuple[str, int], Callable[[Tensor], Tensor]] = {}

    def __call__(self, hidden: Tensor, chosen: Tensor, gates: Tensor) -> Tensor:
        """[tokens, hidden], [tokens, k], [tokens, k] -> [tokens, hidden]."""
        module = self._module
        rows = []
        for token, experts in enumerate(chosen.tolist()):
            total = torch.zeros_like(hidden[token : token + 1])  # [1, hidden]
            # Ascending, as in the model's own code: the order of additions decides the rounding.
            for expert, place in sorted((each, place) for place, each in enumerate(experts)):
                read = hidden[token : token + 1]
                inner = self._product(
                    "gate_up_proj" if module.has_gate else "up_proj", expert, read
                )
                if hasattr(module, "_apply_gate"):
                    inner = module._apply_gate(inner)
                elif module.has_gate:
                    gate, up = inner.chunk(2, dim=-1)
                    inner = module.act_fn(gate) * up
                else:
                    inner = module.act_fn(inner)
                outputs = self._product("down_proj", expert, inner)  # [1, hidden]
                total = total + (outputs * gates[token, place]).to(total.dtype)
            rows.append(total)
        return torch.cat(rows)

    def _product(self, name: str, expert: int, inputs: Tensor) -> Tensor:
        key = (name, expert)
        if key not in self._known:
            weight = getattr(self._module, name)[expert]
            # Some families store experts as [in, out].
            weight = weight.t() if self._module.is_transposed else weight
            bias = getattr(self._module, f"{name}_bias")[expert] if self._module.has_bias else None
            self._known[key] = self._products.of(weight, bias)
        return self._known[key](inputs).view(1, -1)


class _Place:
    """Where the next token goes."""

    at = 0


class _Probe(DynamicCache):  # type: ignore[misc]  # transformers has no types for it
    """A KV cache that says how many tokens it has, and gives an attention only the new ones."""

    def __init__(self, config: Any, seen: int) -> None:
        super().__init__(config=config)
        self._seen = seen
        self.given: dict[int, tuple[Tensor, Tensor]] = {}
        self.attended: set[int] = set()

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        return self._seen

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        self.given[layer_idx] = key_states, value_states
        return key_states, value_states


class RecordedLean:
    """Greedy decoding of ``batch`` sequences of up to ``length`` tokens, as `Lean` does it.

    Raises UnavailableError, with the reason, for a model that cannot be recorded.
    """

    def __init__(self, model: Any, batch: int, length: int, *, packed: bool = False) -> None:
        for path, module in model.named_modules():
            if is_hooked(module) or module.training:
                raise UnavailableError(f"{path or 'the model'} has hooks or is in training mode")
        try:
            self._new_cache = cache_maker(model)
        except PrunebenchError as error:
            raise UnavailableError(str(error)) from error
        _check_cache(self._new_cache(), length)
        self.products = Products(batch, packed=packed)
        self._model = model
        self._batch, self._length = batch, length
        self._place = _Place()
        self._attends: dict[int, _Attend] = {}
        self._leaves: dict[int, Any] = {}
        takes = inspect.signature(model.forward).parameters
        if "position_ids" not in takes:
            raise UnavailableError(f"{type(model).__name__} takes no positions of its tokens")
        self._last = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        device = model.get_input_embeddings().weight.device
        self._position = torch.zeros(batch, 1, dtype=torch.long, device=device)
        # Two positions that differ: a number that comes from the position shows in one of them.
        recording = self._recorded(length // 2)
        if differing := difference(recording, self._recorded(length - 1)):
            raise UnavailableError(f"its steps differ from position to position: {differing}")
        if not self._attends:
            raise UnavailableError("no attention goes through transformers' attention interface")
        # Equal calls first: linears that read one input can only be seen if it has one number.
        recording = shared(pruned(self._with_products(shared(recording))))
        self._step = program(recording)
        try:
            self._check()
        except (RuntimeError, TypeError) as error:
            raise UnavailableError(f"its recorded step fails: {_line(error)}") from error

    def prompt(self, tokens: Tensor) -> Tensor:
        """int64 [batch, prompt] -> the first new token, [batch, 1], by the model's own pass."""
        cache = self._new_cache()
        logits = self._model(tokens, past_key_values=cache, use_cache=True, **self._last).logits
        count = tokens.shape[1]
        for number, attend in self._attends.items():
            filled: Any = cache.layers[number]
            attend.keys[:, :, :count] = filled.keys
            attend.values[:, :, :count] = filled.values
        self._place.at = count
        self._position.fill_(count)
        return most_likely(logits[:, -1])

    def logits(self, tokens: Tensor) -> Tensor:
        """The last token of each sequence, int64 [batch, 1] -> logits, [batch, vocabulary]."""
        logits = self._step(tokens, self._position)[:, -1]
        self._place.at += 1
        self._position += 1
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        """int64 [batch, 1] -> [batch, 1]."""
        return most_likely(self.logits(tokens))

    @torch.no_grad()
    def _recorded(self, at: int) -> Recording:
        """The calls of one step at position ``at``."""
        entries = self._model.get_input_embeddings().weight.shape[0]
        # Other tokens at the other position, and in every sequence of the batch.
        tokens = torch.arange(self._batch).view(-1, 1) * 7 + at + 11
        tokens = (tokens % entries).to(self._position.device)
        position = torch.full_like(self._position, at)
        cache = _Probe(cache_config(self._model), at)
        self._place.at = at
        try:
            with self._ready(cache), Recorder([tokens, position]) as recorder:
                logits = self._model(
                    input_ids=tokens,
                    position_ids=position,
                    past_key_values=cache,
                    use_cache=True,
                    **self._last,
                ).logits
        except UnavailableError:
            raise
        except Exception as error:  # whatever a model needs that the probe does not have
            raise UnavailableError(f"{type(error).__name__}: {_line(error)}") from error
        recorder.recording.output = recorder.ref(logits)
        return pruned(recorder.recording)

    @contextmanager
    def _ready(self, cache: _Probe) -> Iterator[None]:
        """While the block runs, attention, norms and experts are one call each."""

        def attention(
            module: Any,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attention_mask: Any = None,
            **given: Any,
        ) -> tuple[Tensor, None]:
            states = query, key, value  # the names by which families may pass them
            return self._attention(module, cache, states, attention_mask, given), None

        # Every module has its own reference to a config, and some models have several of them.
        configs = {
            id(each.config): each.config
            for each in self._model.modules()
            if hasattr(each, "config")
        }
        before = {key: config._attn_implementation for key, config in configs.items()}
        # Before anything is changed: it can raise.
        leaves = dict(self._leaf_modules())
        ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, attention)
        try:
            for config in configs.values():
                config._attn_implementation_internal = IMPLEMENTATION
            for module, leaf in leaves.items():
                module.forward = _called(leaf)
            yield
        finally:
            for key, config in configs.items():
                config._attn_implementation_internal = before[key]
            for module in leaves:
                del module.forward
            ALL_ATTENTION_FUNCTIONS._global_mapping.pop(IMPLEMENTATION, None)

    def _attention(
        self,
        module: Any,
        cache: _Probe,
        states: tuple[Tensor, Tensor, Tensor],
        mask: Any,
        given: Mapping[str, Any],
    ) -> Tensor:
        number, name = getattr(module, "layer_idx", -1), type(module).__name__
        window = given.get("sliding_window")
        if window is not None and window < self._length:
            raise UnavailableError(f"{name} attends to a window of {window} tokens only")
        odd = [
            key
            for key, value in given.items()
            if key not in _KNOWN and value is not None and value is not False
        ]
        if mask is not None or odd:
            raise UnavailableError(f"{name} needs {', '.join(odd) or 'a mask'}")
        _, keys, values = states
        own = cache.given.get(number, (None, None))  # of this very layer
        if keys is not own[0] or values is not own[1] or number in cache.attended:
            raise UnavailableError(f"{name} reads other keys or values than those in its cache")
        cache.attended.add(number)
        attend = self._attends.get(number)
        if attend is None:
            attend = _Attend(self._place, given.get("scaling"), self._length)
            self._attends[number] = attend
        attend.hold(keys, values)  # the shapes are known only here
        if attend.scaling != given.get("scaling"):
            raise UnavailableError(f"{name} changes its scale from position to position")
        return handle_torch_function(attend, states, *states)

    def _leaf_modules(self) -> Iterator[tuple[Any, Any]]:
        """(module, what computes the same in one call): norms and experts."""
        for experts in find_experts(self._model).values():
            module = experts.module
            name = type(module).__name__
            if (
                name in (*UNROUTED, *SUMS)
                or not hasattr(module, "has_bias")
                or getattr(module, "has_post_expert_norm", False)
                or hasattr(module, "identity_expert")
            ):
                raise UnavailableError(f"its experts are {name}")
            # The same object in both recordings, which are compared.
            self._leaves.setdefault(id(module), _Experts(module))
            yield module, self._leaves[id(module)]
        for module in self._model.modules():
            if type(module).__name__.endswith("RMSNorm") and (norm := _norm(module)) is not None:
                self._leaves.setdefault(id(module), norm)
                yield module, self._leaves[id(module)]

    def _with_products(self, recording: Recording) -> Recording:
        """With every product of a weight made by `Products`, one for linears of one input."""
        parameters = {id(each): each for each in self._model.parameters()}
        groups: dict[Any, list[Call]] = {}
        for call in recording.calls:
            if (found := self._linear(call, parameters)) is not None:
                groups.setdefault(found, []).append(call)
        calls: list[Call] = []
        number = max((call.result for call in recording.calls), default=1)
        placed: dict[int, list[Call]] = {}
        for (source, *_), alike in groups.items():
            number += 1
            weights = [each.args[1] for each in alike]
            biases = [bias for each in alike if (bias := _bias(each)) is not None]
            product = self.products.of(
                side_by_side(weights), side_by_side(biases) if biases else None
            )
            # The product takes the place of the first linear; the others are slices of its result.
            first, rows = alike[0], 0
            whole = (*first.shape[:-1], sum(len(weight) for weight in weights))
            made = [Call(_shaped(product, whole), (Ref(source),), {}, number, whole)]
            for each, weight in zip(alike, weights, strict=True):
                args = (Ref(number), -1, rows, len(weight))
                made.append(Call(torch.narrow, args, {}, each.result, each.shape))
                rows += len(weight)
            if len(alike) == 1:
                made = [Call(made[0].function, made[0].args, {}, first.result, first.shape)]
            placed[first.result] = made
            placed |= {each.result: [] for each in alike[1:]}
        for call in recording.calls:
            calls += placed.get(call.result, [call])
        return Recording(calls, recording.output)

    def _linear(self, call: Call, parameters: Mapping[int, nn.Parameter]) -> Any:
        """A key that linears of one input share; None for another call."""
        if call.function is not functional.linear or len(call.args) < 2:
            return None
        inputs, weight, bias = call.args[0], call.args[1], _bias(call)
        rows = torch.Size(call.shape[:-1]).numel()
        if not isinstance(inputs, Ref) or id(weight) not in parameters or rows != self._batch:
            return None
        if bias is not None and id(bias) not in parameters:
            return None
        if type(weight.data) is not Tensor or not weight.is_contiguous():
            return None
        return inputs.number, weight.shape[1], weight.dtype, bias is None

    @torch.no_grad()
    def _check(self) -> None:
        """Raise UnavailableError if the logits are not the model's own."""
        entries = self._model.get_input_embeddings().weight.shape[0]
        count = max(1, min(4, self._length - _CHECKED))
        tokens = (torch.arange(self._batch * count).view(self._batch, count) * 5 + 3) % entries
        tokens = tokens.to(self._position.device)
        cache = self._new_cache()
        self._model(tokens, past_key_values=cache, use_cache=True)
        token = self.prompt(tokens)
        for _ in range(min(_CHECKED, self._length - count)):
            expected = self._model(token, past_key_values=cache, use_cache=True).logits[:, -1]
            found = self.logits(token)
            scale = float(expected.abs().max())
            wrong = float((found - expected).abs().max()) / max(scale, 1e-9)
            if not wrong <= _TOLERANCE.get(expected.dtype, _HALF):
                raise UnavailableError(f"its logits differ by {wrong:.1g} of the largest")
            token = most_likely(expected)


def _check_cache(cache: Any, length: int) -> None:
    """Raise UnavailableError if a layer keeps something else than all keys and values."""
    if type(cache) is not DynamicCache:
        raise UnavailableError(f"its KV cache is a {type(cache).__name__}")
    for number, layer in enumerate(cache.layers):
        if isinstance(layer, DynamicSlidingWindowLayer):
            if layer.sliding_window < length:
                raise UnavailableError(
                    f"layer {number} attends to a window of {layer.sliding_window} tokens only"
                )
        elif type(layer) is not DynamicLayer:
            raise UnavailableError(f"layer {number} keeps a {type(layer).__name__}")


def _called(leaf: Any) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        args = (*args, *kwargs.values())
        return handle_torch_function(leaf, args, *args)

    return forward


def _shaped(product: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Callable[..., Tensor]:
    if len(shape) == 3:
        return product
    return lambda inputs: product(inputs).view(shape)


def _bias(call: Call) -> Any:
    return call.args[2] if len(call.args) > 2 else call.kwargs.get("bias")


def _norm(module: Any) -> RMSNorm | None:
    """A root-mean-square norm in one call; None if it is another norm, or rounds otherwise."""
    if isinstance(module, UnweightedNorm):
        return None
    gain = gain_of(module)
    # Gemma multiplies by one plus the weight in float32: in half precision that rounds otherwise,
    # so the calls of such a norm are recorded one by one.
    if gain is None or (gain.float() != module.weight.float()).any():
        return None
    return RMSNorm(module.weight.data, epsilon_of(module), len(module.weight))


def _line(error: Exception) -> str:
    return (str(error).strip() or "no message").split("\n")[0][:120]
