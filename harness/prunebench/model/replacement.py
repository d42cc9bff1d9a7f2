"""A small network in place of decoder layers: states [batch, tokens, hidden] in, states out.

LLM-Streamline (arXiv:2403.19135) trains one to give what the layers that it replaces would give. It
has no residual path and no attention, so it needs no KV cache of its own.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from prunebench.model.anatomy import Anatomy
from prunebench.model.coupling.find import inherit
from prunebench.model.coupling.removed import RemovedAttention
from prunebench.model.coupling.sub_block import KINDS
from prunebench.model.surgery import without
from prunebench.schema import Part

Network = Literal["mlp", "swiglu"]


class Replacement(Part):
    """The network in place of a layer, and its size."""

    network: Network
    width: int = Field(gt=0, description="channels between its two projections")


class ReplacementLayer(nn.Module):
    """A layer of the model's list of layers that computes a network instead.

    The attention and the MLP of the layer are there as removed ones, so that whoever looks for them
    finds that the layer has none.
    """

    def __init__(self, layer: nn.Module, replacement: Replacement, hidden: int) -> None:
        super().__init__()
        inherit(self, layer)
        self.replacement = replacement
        for name, child in layer.named_children():
            if next(child.parameters(), None) is None:  # a removed sub-block or norm
                self.add_module(name, child)
        kind = {"mlp": _MLP, "swiglu": _SwiGLU}[replacement.network]
        self.network = kind(hidden, replacement.width)
        self.train(layer.training)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        # A removed attention fills its part of the KV cache, which transformers counts on.
        for module in self.children():
            if isinstance(module, RemovedAttention):
                module(hidden_states, *args, **kwargs)
        output: torch.Tensor = self.network(hidden_states)
        return output


def is_replaced(layer: nn.Module) -> bool:
    """Whether a network computes in this layer's place."""
    return isinstance(layer, ReplacementLayer)


def replace_layer(parts: Anatomy, index: int, replacement: Replacement) -> None:
    """Put a network with random weights in the place of layer ``index``.

    torch's global generator draws the weights.
    """
    embedding = parts.embeddings.weight  # [vocabulary, hidden]
    with without(parts, index, KINDS) as stripped:
        layer = ReplacementLayer(stripped, replacement, embedding.shape[1])
    # No parameter of a loaded model learns before somebody trains it.
    parts.layers[index] = layer.to(embedding).requires_grad_(requires_grad=False)


class _Projection(nn.Module):
    """y = W x + b with torch's usual random start.

    Not an `nn.Linear`: those of the layers are what methods prune and what the audit counts.
    """

    def __init__(self, into: int, out: int, *, bias: bool) -> None:
        super().__init__()
        start = nn.Linear(into, out, bias=bias)
        self.weight, self.bias = start.weight, start.bias  # [out, into], [out] or None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


class _MLP(nn.Module):
    """W2 relu(W1 x), with biases."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.fc1 = _Projection(hidden, width, bias=True)
        self.fc2 = _Projection(width, hidden, bias=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.fc2(self.fc1(x).relu())
        return output


class _SwiGLU(nn.Module):
    """Wd (silu(Wg x) * Wu x), as in a Llama's MLP (arXiv:2002.05202, equation 6)."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate = _Projection(hidden, width, bias=False)
        self.up = _Projection(hidden, width, bias=False)
        self.down = _Projection(width, hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.down(nn.functional.silu(self.gate(x)) * self.up(x))
        return output
