"""Layers whose residual stream changes its basis, and its width, behind every sub-block.

A root-mean-square norm without weights commutes with rotations: its weights are folded into the
linears that read it. Then the stream may have another basis Q at every place, of which only some
columns are kept: what writes to it computes Q^T W, what reads it W Q, and the residual passes
through Q_before^T Q_after. That product is one more matrix for each sub-block
(arXiv:2401.15024, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from prunebench.errors import PrunebenchError
from prunebench.model.anatomy import anatomy
from prunebench.model.surgery import replace

ROTATIONS = ("attention_rotation", "mlp_rotation")
"""Parameters of a rotated layer, [channels before, channels after] the sub-block."""
PARTS = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")
"""The modules that such a layer runs, in this order, each pair with a residual around it."""
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
_HALF = 0.1


class UnweightedNorm(torch.nn.Module):
    """x / sqrt(|x|^2 / width + epsilon) over the last dimension, which may be narrower than width.

    It is the norm of all ``width`` channels if those that are missing would be zero.
    """

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.width = width
        self.epsilon = epsilon

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        exact = hidden.float()
        mean = exact.square().sum(-1, keepdim=True) / self.width
        return (exact * torch.rsqrt(mean + self.epsilon)).to(hidden.dtype)

    def extra_repr(self) -> str:
        return f"width={self.width}, epsilon={self.epsilon}"


def is_rotated(layer: torch.nn.Module) -> bool:
    """Whether `rotate` changed this layer."""
    return hasattr(layer, ROTATIONS[0])


def rotate(layer: Any, sizes: tuple[int, int, int], epsilon: float | None = None) -> None:
    """Make a layer run with a rotation of the residual around each sub-block, in place.

    ``sizes``: channels before the attention, between the sub-blocks, and behind the MLP. The
    rotations begin as a part of the identity, and the norms without their weights; ``epsilon``
    replaces that of the norms.
    """
    weight = layer.get_parameter("input_layernorm.weight")
    width = len(weight)
    for name, before, after in zip(ROTATIONS, sizes, sizes[1:], strict=False):
        # A parameter, so that it is saved, moved and counted like other weights.
        matrix = torch.eye(before, after, dtype=weight.dtype, device=weight.device)
        layer.register_parameter(name, torch.nn.Parameter(matrix, requires_grad=False))
    for name in PARTS[::2]:
        own = epsilon_of(getattr(layer, name)) if epsilon is None else epsilon
        setattr(layer, name, UnweightedNorm(width, own).train(layer.training))
    kind: Any = type(layer)
    layer.__class__ = _rotated_class(kind)


def epsilon_of(norm: Any) -> float:
    """What a norm adds to the mean square."""
    names = ("epsilon", "variance_epsilon", "eps")
    return float(next(getattr(norm, name) for name in names if hasattr(norm, name)))


def gain_of(norm: Any) -> torch.Tensor | None:
    """The weights of a root-mean-square norm, float64 [width]; None if it is another norm.

    Families store the weights, or the weights minus one.
    """
    weight = getattr(norm, "weight", None)
    epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if weight is None or weight.dim() != 1 or not isinstance(epsilon, float):
        return None
    if getattr(norm, "bias", None) is not None:
        return None
    # Trying it out is surer than names: Gemma's class is called like Llama's, and adds one.
    generator = torch.Generator().manual_seed(0)
    tried = torch.randn(4, len(weight), generator=generator).to(weight)
    plain = UnweightedNorm(len(weight), epsilon)(tried)
    for gain in (weight, 1 + weight):
        difference = (norm(tried) - plain * gain).abs().max()
        if float(difference) <= _TOLERANCE.get(weight.dtype, _HALF) * float(plain.abs().max()):
            found: torch.Tensor = gain.detach().double()
            return found
    return None


def sizes_of(layer: Any) -> tuple[int, int, int]:
    """Channels before the attention of a rotated layer, between its sub-blocks, behind its MLP."""
    first, second = (getattr(layer, name) for name in ROTATIONS)
    return first.shape[0], first.shape[1], second.shape[1]


def narrow_rotated(model: Any, layers: Sequence[tuple[int, int, int]], epsilon: float) -> None:
    """Give a model that was just built the modules and sizes of a rotated one, in place.

    Its weights are filled in later.
    """
    parts = anatomy(model)
    # Before anything is resized: the inputs are found by running the model.
    groups = [parts.inputs_of(layer) for layer in parts.layers]
    for layer, sizes, inputs in zip(parts.layers, layers, groups, strict=True):
        for block, before, after in zip(PARTS[1::2], sizes, sizes[1:], strict=False):
            inside = [group for group in inputs if group[0].startswith(f"{block}.")]
            for name in inside[0]:
                resize(layer.get_submodule(name), columns=before)
            resize(layer.get_submodule(inside[-1][-1]), rows=after)
        rotate(layer, sizes, epsilon)
    resize(parts.embeddings, columns=layers[0][0])
    resize(parts.head, columns=layers[-1][-1])
    norm: Any = parts.final_norm
    plain = UnweightedNorm(len(norm.weight), epsilon).train(norm.training)
    replace(model, str(parts.where.norm), plain)


def resize(module: Any, *, rows: int | None = None, columns: int | None = None) -> None:
    """Give a linear, or an embedding, a weight [rows, columns] without values."""
    old = module.weight
    shape = (old.shape[0] if rows is None else rows, old.shape[1] if columns is None else columns)
    module.weight = torch.nn.Parameter(old.new_empty(shape), requires_grad=False)
    if columns is not None:
        setattr(
            module, "in_features" if hasattr(module, "in_features") else "embedding_dim", columns
        )
    if rows is not None:
        module.out_features = rows
        if module.bias is not None:
            module.bias = torch.nn.Parameter(module.bias.new_empty(rows), requires_grad=False)


@cache
def _rotated_class(kind: Any) -> Any:
    """A subclass of a layer's class with rotations; it has the same name, by which it is found."""

    def forward(self: Any, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        attended = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        # [batch, tokens, before] @ [before, after] + [batch, tokens, after]
        between = hidden_states @ self.attention_rotation + states_in(attended)
        output: torch.Tensor = between @ self.mlp_rotation + states_in(
            self.mlp(self.post_attention_layernorm(between))
        )
        return output

    named = {"forward": forward, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (kind,), named)


def states_in(output: Any) -> torch.Tensor:
    """The states in what a module returns."""
    states: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return states


def check_parts(index: int, layer: Any) -> None:
    """Raise PrunebenchError, in one sentence that names the module, if it cannot be rotated."""
    children = {name for name, child in layer.named_children() if list(child.parameters())}
    what = f"layer {index}: the residual stream cannot be rotated"
    hint = "prune KV groups and MLP channels instead, for example with llm-pruner"
    for name, child in layer.named_children():
        if isinstance(child, torch.nn.LayerNorm):
            raise PrunebenchError(
                f"layer {index}: {name} subtracts a mean, so the stream cannot be rotated",
                hint=hint,
            )
    if children != set(PARTS):
        odd = ", ".join(sorted(children ^ set(PARTS)))
        raise PrunebenchError(
            f"{what}, because it is not one attention and one MLP, each behind a norm: {odd}",
            hint=hint,
        )
    for name in PARTS[::2]:
        norm = getattr(layer, name)
        if gain_of(norm) is None:
            raise PrunebenchError(
                f"{what}, because {name} ({type(norm).__name__}) is no root-mean-square norm whose"
                " weights could be folded into the linears behind it",
                hint=hint,
            )
