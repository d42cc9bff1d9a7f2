"""A decode step without the model's own Python, for families built like Llama.

It runs a dozen kernels per layer and computes what the modules compute, on their own weights:
root-mean-square norms, rotary positions, grouped-query attention over a KV cache of fixed size, a
gated MLP. Linears that read the same input become one product: their weights are put side by side
once, and the parameters of the modules become views of that, so memory holds them once. Layers may
differ in width, blocks may be removed, and a layer may be replaced by a network, which runs as it
is. A model with anything else in it is refused, never approximated. Other families have the step
of `recorded_decoder`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache
from transformers.activations import SiLUActivation

from prunebench.measure.speed.products import Product, Products
from prunebench.measure.speed.unavailable import UnavailableError
from prunebench.model.anatomy import anatomy
from prunebench.model.coupling.removed import RemovedAttention, RemovedMLP
from prunebench.model.coupling.sub_block import Kind
from prunebench.model.indexed import READS, WRITES
from prunebench.model.replacement import ReplacementLayer
from prunebench.model.rotated import ROTATIONS, UnweightedNorm

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_ROPES = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary positions whose angles do not depend on the length of the sequence."""

_SINGLE = (torch.float32, torch.bfloat16, torch.float16)
"""Types whose products with a number are computed in float32."""


@dataclass(frozen=True)
class RMSNorm:
    """A root-mean-square norm over the last dimension."""

    weight: Tensor | None
    epsilon: float
    size: int
    gain: float = 1.0
    """Factor of all outputs: the mean of a rotated stream counts the channels that went, too."""
    floor: float = field(init=False)  # sqrt(size x epsilon)
    root: float = field(init=False)  # gain x sqrt(size)
    tensors: tuple[Tensor, Tensor, Tensor] = field(init=False)  # floor, root, zero

    def __post_init__(self) -> None:
        numbers = (self.size * self.epsilon) ** 0.5, self.gain * self.size**0.5
        # Tensors too, because a number divided by a tensor is three kernels.
        device = None if self.weight is None else self.weight.device
        tensors = tuple(torch.tensor(number, device=device) for number in (*numbers, 0.0))
        for name, value in zip(("floor", "root", "tensors"), (*numbers, tensors), strict=True):
            object.__setattr__(self, name, value)

    def __call__(self, inputs: Tensor) -> Tensor:
        """[..., size] -> [..., size]; float32, weighted in the model's dtype, like the modules."""
        if inputs.is_cuda:
            normed = functional.rms_norm(inputs, (self.size,), self.weight, self.epsilon)
            return normed if self.gain == 1 else normed * self.gain
        # On a CPU that call is a dozen kernels. These are two or three for one row, and five for
        # several: 1 / sqrt(mean(x^2) + epsilon) = sqrt(size) / sqrt(|x|^2 + size x epsilon)
        #                                        = sqrt(size) / hypot(|x|, floor).
        if inputs.numel() == inputs.shape[-1] and inputs.is_cpu and inputs.dtype in _SINGLE:
            # A number of Python's waits for no device here. Half precision times a number is
            # computed in float32 and rounded once, as below.
            length = torch.linalg.vector_norm(inputs, dtype=torch.float32).item()
            factor = self.root / math.hypot(length, self.floor)
            if inputs.dtype == torch.float32 and self.weight is not None:
                return torch.addcmul(self.tensors[2], inputs, self.weight, value=factor)
            normed = inputs * factor
        else:
            floor, root, _ = self.tensors
            exact = inputs.float()
            lengths = torch.linalg.vector_norm(exact, dim=-1, keepdim=True).hypot_(floor)
            normed = (exact * (root / lengths)).to(inputs.dtype)
        return normed if self.weight is None else normed * self.weight


def most_likely(logits: Tensor) -> Tensor:
    """[..., vocabulary] -> the most likely token, int64 [..., 1]; the first of several."""
    # On a CPU `argmax` takes three times as long.
    return logits.max(-1, keepdim=True).indices


def grouped_attention(
    queries: Tensor, keys: Tensor, values: Tensor, scale: float | None, mask: Tensor | None = None
) -> Tensor:
    """What the heads of one token read: [batch, key heads, query heads of each, head].

    ``queries``: [batch, query heads, ..., head], of one position. ``keys`` and ``values``:
    [batch, key heads, length, head]. ``mask``: [1, 1, 1, length].
    """
    # The query heads of one key head are passed as its positions. The cache is then read once for
    # all of them; with ``enable_gqa`` it is read once for each.
    grouped = queries.reshape(len(queries), keys.shape[1], -1, queries.shape[-1])
    return functional.scaled_dot_product_attention(
        grouped, keys, values, attn_mask=mask, scale=scale
    )


@dataclass(frozen=True)
class _Attention:
    norm: RMSNorm
    into: Product  # hidden -> queries, keys and values side by side
    out: Product  # heads -> hidden
    query_heads: int
    key_heads: int
    scaling: float
    query_norm: RMSNorm | None
    key_norm: RMSNorm | None
    cache: Tensor  # of keys and values, [batch, 2, key heads, length, head]
    rotation: Tensor | None  # of the residual, [channels before, channels after]
    reads: Tensor | None  # the channels of the residual that it reads; None: all
    writes: Tensor | None


@dataclass(frozen=True)
class _MLP:
    norm: RMSNorm
    into: Product  # hidden -> gate and up side by side, 2 x width
    out: Product  # width -> hidden
    width: int
    activation: Callable[[Tensor], Tensor]
    rotation: Tensor | None  # as in the attention, and the next two
    reads: Tensor | None
    writes: Tensor | None


class Lean:
    """Greedy decoding of ``batch`` sequences of up to ``length`` tokens.

    With ``fixed``, the shapes and addresses of a step do not depend on the position: a CUDA graph
    replays them as recorded. With ``packed``, products may read a second copy of their weight (see
    `Products`). Raises UnavailableError, with the reason, for a model that this class does not
    cover.
    """

    def __init__(
        self, model: Any, batch: int, length: int, *, fixed: bool = False, packed: bool = False
    ) -> None:
        parts = anatomy(model)
        if parts.model_type not in FAMILIES:
            raise UnavailableError(f"it covers {', '.join(FAMILIES)}, not {parts.model_type}")
        self._model = model
        self._fixed = fixed
        self._batch = batch
        self.products = Products(batch, packed=packed)
        self._cosines, self._sines = _angles(model, length)  # [length, 2, head / 2]
        self._layers = [
            self._layer(number, layer, length) for number, layer in enumerate(parts.layers)
        ]
        self._embedding = _plain(parts.embeddings, nn.Embedding, "the embedding").weight
        self._norm = _norm(parts.final_norm, "the final norm", parts.head.in_features)
        self._head = self._product([parts.head], "the head")
        self._at = 0
        self._place = torch.zeros(1, dtype=torch.long, device=model.device)  # `_at` on the device
        self._all = torch.arange(length, device=model.device)

    def prompt(self, tokens: Tensor) -> Tensor:
        """int64 [batch, prompt] -> the first new token, [batch, 1], by the model's own pass."""
        cache = DynamicCache(config=self._model.config)
        logits = self._model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        for (attention, *_), filled in zip(self._layers, cache.layers, strict=True):
            if attention is not None:  # [batch, key heads, prompt, head]
                attention.cache[:, 0, :, : tokens.shape[1]] = filled.keys
                attention.cache[:, 1, :, : tokens.shape[1]] = filled.values
        self.rewind(tokens.shape[1])
        return most_likely(logits[:, -1])

    def rewind(self, at: int) -> None:
        """Put the next token at position ``at``."""
        self._at = at
        self._place.fill_(at)

    def step(self, tokens: Tensor) -> Tensor:
        """int64 [batch, 1] -> [batch, 1]."""
        hidden = functional.embedding(tokens, self._embedding)  # [batch, 1, hidden]
        if self._fixed:
            # Only the tensor `_place` says where the token is: a Python number would be baked into
            # the graph. Attention reads the whole cache, so the mask hides what is not written yet.
            cosine = self._cosines.index_select(0, self._place)[0]  # [2, head / 2]
            sine = self._sines.index_select(0, self._place)[0]
            mask = (self._all <= self._place)[None, None, None]  # [1, 1, 1, length]
        else:
            cosine, sine = self._cosines[self._at], self._sines[self._at]
            mask = None
        for attention, mlp, network in self._layers:
            if network is not None:
                hidden = network(hidden)
            if attention is not None:
                attended = self._attend(attention, hidden, cosine, sine, mask)
                hidden = _added(_carried(hidden, attention.rotation), attention.writes, attended)
            if mlp is not None:
                both = mlp.into(_read(mlp.norm(hidden), mlp.reads))  # [batch, 1, 2 x width]
                gate, up = both.split_with_sizes((mlp.width, mlp.width), -1)
                output = mlp.out(mlp.activation(gate).mul_(up))
                hidden = _added(_carried(hidden, mlp.rotation), mlp.writes, output)
        logits = self._head(self._norm(hidden))  # [batch, 1, vocabulary]
        self._at += 1
        if self._fixed:
            self._place += 1
        return most_likely(logits[:, -1])

    def _attend(
        self, part: _Attention, hidden: Tensor, cosine: Tensor, sine: Tensor, mask: Tensor | None
    ) -> Tensor:
        turning, still = part.query_heads + part.key_heads, part.key_heads
        # Queries, keys and values, [batch, heads, head]. They are new, so they may be changed.
        every = part.into(_read(part.norm(hidden), part.reads)).view(
            self._batch, turning + still, -1
        )
        if part.query_norm is not None and part.key_norm is not None:
            queries, keys, values = every.split_with_sizes((part.query_heads, still, still), 1)
            every = torch.cat([part.query_norm(queries), part.key_norm(keys), values], dim=1)
        # Queries and keys are neighbours, so one rotation turns both: x cos + rotate_half(x) sin.
        # The minus of rotate_half is already in the sines (`_angles`), so its halves only trade
        # places.
        halves = every.narrow(1, 0, turning).view(self._batch, turning, *cosine.shape)
        swapped = halves.flip(-2)  # [batch, heads, 2, head / 2]
        halves.mul_(cosine).addcmul_(swapped, sine)
        queries, pair = every.split_with_sizes((part.query_heads, 2 * still), 1)
        pair = pair.view(self._batch, 2, still, -1)  # keys and values
        seen = part.cache
        if self._fixed:
            seen.index_copy_(3, self._place, pair[:, :, :, None])
        else:
            seen.select(3, self._at).copy_(pair)
            seen = seen.narrow(3, 0, self._at + 1)
        seen_keys, seen_values = seen.unbind(1)  # [batch, key heads, length, head]
        mixed = grouped_attention(queries, seen_keys, seen_values, part.scaling, mask)
        return part.out(mixed.reshape(self._batch, 1, -1))

    def _layer(
        self, number: int, layer: Any, length: int
    ) -> tuple[_Attention | None, _MLP | None, nn.Module | None]:
        """Attention and MLP, or the network that is in the layer's place."""
        name = f"layer {number}"
        if is_hooked(layer) or layer.training:
            raise UnavailableError(f"{name} has hooks or is in training mode")
        if isinstance(layer, ReplacementLayer):
            return None, None, layer.network
        rotations = [getattr(layer, rotation, None) for rotation in ROTATIONS]
        attention = None
        if not isinstance(layer.self_attn, RemovedAttention):
            attention = self._attention(name, layer, length, rotations[0])
        mlp = None
        if not isinstance(layer.mlp, RemovedMLP):
            gate, up, down = layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj
            mlp = _MLP(
                norm=_norm(
                    layer.post_attention_layernorm, f"{name}: its second norm", gate.in_features
                ),
                into=self._product([gate, up], f"{name}: its MLP"),
                out=self._product([down], f"{name}: its MLP"),
                width=gate.out_features,
                activation=_activation(layer.mlp.act_fn),
                rotation=rotations[1],
                **_channels(layer, "mlp"),
            )
        return attention, mlp, None

    def _attention(self, name: str, layer: Any, length: int, rotation: Tensor | None) -> _Attention:
        module = layer.self_attn
        window = getattr(module, "sliding_window", getattr(module.config, "sliding_window", None))
        if window is not None and window < length:
            raise UnavailableError(f"{name} attends to a window of {window} tokens only")
        head = module.head_dim
        if head != self._cosines[0].numel():
            raise UnavailableError(f"{name} turns only a part of each head")
        key_heads = module.k_proj.out_features // head
        shape = (self._batch, 2, key_heads, length, head)
        weight = module.k_proj.weight
        has_norms = hasattr(module, "q_norm")
        return _Attention(
            norm=_norm(layer.input_layernorm, f"{name}: its first norm", module.q_proj.in_features),
            into=self._product(
                [module.q_proj, module.k_proj, module.v_proj], f"{name}: its attention"
            ),
            out=self._product([module.o_proj], f"{name}: its attention"),
            query_heads=module.q_proj.out_features // head,
            key_heads=key_heads,
            scaling=module.scaling,
            query_norm=_norm(module.q_norm, f"{name}: q_norm", head) if has_norms else None,
            key_norm=_norm(module.k_norm, f"{name}: k_norm", head) if has_norms else None,
            cache=torch.zeros(shape, dtype=weight.dtype, device=weight.device),
            rotation=rotation,
            **_channels(layer, "attention"),
        )

    def _product(self, linears: Sequence[Any], what: str) -> Product:
        """One product for linears that read the same input: [..., in] -> [..., out + out + ...]."""
        for linear in linears:
            _plain(linear, nn.Linear, what)
        # A 2:4 compressed weight is a tensor subclass, which cannot be a view of a larger one.
        if len(linears) > 1 and any(type(linear.weight.data) is not Tensor for linear in linears):
            single = [self._product([linear], what) for linear in linears]
            return lambda inputs: torch.cat([product(inputs) for product in single], dim=-1)
        weight = side_by_side([linear.weight for linear in linears])
        biases = [linear.bias for linear in linears if linear.bias is not None]
        if biases and len(biases) < len(linears):
            raise UnavailableError(f"{what}: only some of its linears have a bias")
        bias = side_by_side(biases) if biases else None
        return self.products.of(weight, bias)


@torch.no_grad()
def side_by_side(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The parameters one below the other, [sum of rows, ...], in one block of memory.

    The parameters become views of that block. If they already are (a second shape of the same
    model), nothing is copied.
    """
    first = parameters[0]
    if len(parameters) == 1:
        return first.data
    start, end = first.storage_offset(), first.storage_offset()
    for each in parameters:  # are they neighbours in one storage already?
        if (
            each.untyped_storage().data_ptr() != first.untyped_storage().data_ptr()
            or each.storage_offset() != end
        ):
            break
        end += each.numel()
    else:
        rows = sum(len(each) for each in parameters)
        return first.data.as_strided((rows, *first.shape[1:]), first.stride(), start)
    whole = torch.cat([each.data for each in parameters])
    row = 0
    for each in parameters:
        each.data = whole[row : row + len(each)]
        row += len(each)
    return whole


def _plain(module: Any, kind: type[nn.Module], what: str) -> Any:
    if type(module) is not kind or is_hooked(module):  # a subclass can compute something else
        raise UnavailableError(
            f"{what} holds a {type(module).__name__}{' with hooks' if is_hooked(module) else ''}"
        )
    return module


def _activation(module: Any) -> Callable[[Tensor], Tensor]:
    """What the module computes; of the usual one without a module's call, 15 us a layer."""
    usual = type(module) in {nn.SiLU, SiLUActivation} and not is_hooked(module)
    return functional.silu if usual else module


def _carried(hidden: Tensor, rotation: Tensor | None) -> Tensor:
    """The residual behind a sub-block, [batch, 1, channels]."""
    return hidden if rotation is None else hidden @ rotation


def _channels(layer: Any, kind: Kind) -> dict[str, Tensor | None]:
    """Which channels of the residual a sub-block reads and writes; None if these are all."""
    if not hasattr(layer, READS[kind]):
        return {"reads": None, "writes": None}
    norm = layer.input_layernorm if kind == "attention" else layer.post_attention_layernorm
    width = len(norm.weight)
    found = {"reads": getattr(layer, READS[kind]), "writes": getattr(layer, WRITES[kind])}
    return {name: each if len(each) < width else None for name, each in found.items()}


def _read(normed: Tensor, channels: Tensor | None) -> Tensor:
    """What a sub-block reads, [batch, 1, channels]."""
    return normed if channels is None else normed.index_select(-1, channels)


def _added(hidden: Tensor, channels: Tensor | None, output: Tensor) -> Tensor:
    """The residual behind a sub-block, [batch, 1, hidden], whose output is [batch, 1, channels]."""
    return hidden + output if channels is None else hidden.index_add(-1, channels, output)


def _norm(module: Any, what: str, size: int) -> RMSNorm:
    """The norm before a sub-block that reads ``size`` channels.

    Raises UnavailableError for one of another kind.
    """
    if isinstance(module, UnweightedNorm) and not is_hooked(module):
        # |x|^2 / width + epsilon is size / width times the mean square and its own epsilon.
        share = module.width / size
        return RMSNorm(None, module.epsilon * share, size, share**0.5)
    if not type(module).__name__.endswith("RMSNorm") or is_hooked(module):
        raise UnavailableError(
            f"{what} is a {type(module).__name__}{' with hooks' if is_hooked(module) else ''}"
        )
    weight, epsilon = module.weight.data, float(module.variance_epsilon)
    # Not ``size``: an indexed layer reads some of the channels that the norm sees.
    return RMSNorm(weight, epsilon, len(weight))


def is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _angles(model: Any, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position, [length, 2, head / 2], in the dtype of the weights.

    rotate_half(x) is [-x2, x1] for halves [x1, x2]: the minus is moved into the first half of the
    sines.
    """
    rotary = model.model.rotary_emb
    kind = getattr(rotary, "rope_type", "default")
    if kind not in _ROPES:
        raise UnavailableError(f"its rotary positions are of the kind '{kind}'")
    weight = model.get_input_embeddings().weight
    places = torch.arange(length, device=weight.device)[None]
    cosines, sines = rotary(weight, position_ids=places)  # [1, length, head]
    half = sines.shape[-1] // 2
    signs = torch.tensor([[-1], [1]], dtype=sines.dtype, device=sines.device)
    return cosines[0].unflatten(-1, (2, half)), sines[0].unflatten(-1, (2, half)) * signs
