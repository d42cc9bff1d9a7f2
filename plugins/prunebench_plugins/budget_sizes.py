"""What the model and its variants take of a budget: parameters, or bytes of weights and cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from prunebench_plugins.llm_pruner_groups import pool_of

if TYPE_CHECKING:
    from prunebench import Anatomy, Block
    from prunebench_plugins.budget_variants import Item


class Sizes(NamedTuple):
    """What the model takes of a budget, in whole units."""

    total: int
    """The dense model."""
    of: dict[Block, list[int]]
    """Each item's variants. What is not in them is in every model."""

    @property
    def fixed(self) -> int:
        """What no choice changes."""
        return self.total - sum(sizes[0] for sizes in self.of.values())


def parameters(parts: Anatomy) -> int:
    """The model's parameters."""
    count: int = sum(parameter.numel() for parameter in parts.model.parameters())
    return count


def parameters_of(parts: Anatomy, items: Sequence[Item]) -> Sizes:
    """Parameters, of the model and of every variant."""
    return Sizes(parameters(parts), {item.block: _parameters(parts, item) for item in items})


def _parameters(parts: Anatomy, item: Item) -> list[int]:
    """Of each variant: matrices, the norms before them, and the bias that makes up for groups."""
    layer = parts.layers[item.block.layer]
    block = parts.sub_block(layer, item.block.kind)
    assert block is not None
    # Paths may lie in each other, so that a parameter is counted once.
    owned = {
        id(parameter): parameter.numel()
        for path in (*block.modules, *block.norms)
        for parameter in layer.get_submodule(path).parameters()
    }
    whole = sum(owned.values())
    if item.reader is None:
        return [whole if variant.groups else 0 for variant in item.variants]
    linear = parts.linears(layer)[item.reader]
    bias = linear.out_features if item.mean is not None and linear.bias is None else 0
    cost = pool_of(parts, item.block, {}).cost
    found = []
    for variant in item.variants:
        added = bias if 0 < variant.groups < item.present else 0
        narrower = whole - (item.present - variant.groups) * cost + added
        found.append(narrower if variant.groups else 0)
    return found


FILLER = 2
"""Numbers for each token in the cache of a removed attention, which tell how many it has seen."""


class Tokens(NamedTuple):
    """What a KV cache holds."""

    length: int
    """Tokens of each sequence."""
    batch_size: int


def memory(parts: Anatomy, tokens: Tokens) -> int:
    """Bytes of the weights and of the KV cache."""
    return _weight_bytes(parts) + sum(_cache_bytes(parts, tokens).values())


def memory_of(parts: Anatomy, items: Sequence[Item], counted: Sizes, tokens: Tokens) -> Sizes:
    """The same of the model and of every variant, whose parameters are ``counted``."""
    cache = _cache_bytes(parts, tokens)
    seen = tokens.length * tokens.batch_size
    of = {}
    for item in items:
        layer = parts.layers[item.block.layer]
        size = next(iter(layer.parameters())).element_size()
        its = cache.get(item.block.layer, 0) if item.block.kind == "attention" else 0
        of[item.block] = [
            count * size
            + (its * variant.groups // item.present or bool(its) * seen * FILLER * size)
            for count, variant in zip(counted.of[item.block], item.variants, strict=True)
        ]
    return Sizes(_weight_bytes(parts) + sum(cache.values()), of)


def _weight_bytes(parts: Anatomy) -> int:
    return sum(each.numel() * each.element_size() for each in parts.model.parameters())


def _cache_bytes(parts: Anatomy, tokens: Tokens) -> dict[int, int]:
    """Bytes of each layer's KV cache, measured with one token, times the number of tokens."""
    ids = torch.zeros(1, 1, dtype=torch.long, device=parts.embeddings.weight.device)
    cache = parts.model(ids, use_cache=True).past_key_values
    found = {}
    for index, layer in enumerate(getattr(cache, "layers", ())):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is not None and values is not None:
            seen = min(tokens.length, getattr(layer, "sliding_window", None) or tokens.length)
            found[index] = (keys.nbytes + values.nbytes) * seen * tokens.batch_size
    return found
