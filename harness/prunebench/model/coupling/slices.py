"""Make one sub-block narrower or wider: rows, columns and the numbers that a module remembers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from prunebench.model.coupling.sub_block import Cut, SubBlock

HEAD_FIELDS = ("num_attention_heads", "num_key_value_heads")
"""What a config calls the numbers of heads."""


def width(linear: Any, dim: int) -> int:
    """Rows (0) or columns (1) of a linear's weight [out, in]; a Conv1D's is stored transposed."""
    return int(linear.weight.shape[_stored(linear, dim)])


def owned(
    layer: torch.nn.Module, block: SubBlock, cut: Cut, groups: int, kept: Sequence[int]
) -> torch.Tensor:
    """Ascending indices of the rows or columns of ``cut`` that the ``kept`` groups own.

    Raises ValueError if they do not divide into ``groups`` groups.
    """
    sections = _sections(layer, block, cut, groups)
    return runs(sections, groups, kept)


def _sections(layer: torch.nn.Module, block: SubBlock, cut: Cut, groups: int) -> list[int]:
    """Lengths of the matrices that are stacked in the linear of ``cut``, in rows or columns.

    Raises ValueError if they do not divide into ``groups`` groups.
    """
    size = width(layer.get_submodule(cut.linear), cut.dim)
    # The writer has as many columns as there are queries, whatever their number for each key.
    queries = width(layer.get_submodule(block.cuts[-1].linear), 1)
    keys = (size - queries) // 2
    sections = {1: [size], 2: [size // 2] * 2, 3: [queries, keys, keys]}[cut.parts]
    if sum(sections) != size or any(length % groups for length in sections):
        message = f"{cut.linear}: {size} rows do not divide into {groups} groups"
        raise ValueError(message)
    return sections


def stacked(layer: torch.nn.Module, block: SubBlock, cut: Cut, groups: int) -> list[torch.Tensor]:
    """The rows or columns of ``cut`` by the matrices that are stacked in it.

    Queries, keys and values, or gate and up; one matrix if nothing is stacked. Each has the indices
    of its rows group by group, int64 [groups * rows of a group].
    """
    rows = owned(layer, block, cut, groups, range(groups))
    if cut.parts > 1:
        queries = width(layer.get_submodule(block.cuts[-1].linear), 1)
        keys = (len(rows) - queries) // 2
        sizes = [len(rows) // 2] * 2 if cut.parts == 2 else [queries, keys, keys]
        return list(torch.split(rows, sizes))
    if block.heads is not None and cut.dim == 0 and len(block.cuts) == 2:
        ratio = block.heads.query // block.heads.keys
        if len(rows) == groups * (ratio + 2) * block.heads.dim:  # [groups, queries + 2, channels]
            heads = rows.view(groups, ratio + 2, block.heads.dim)
            return [part.reshape(-1) for part in torch.split(heads, [ratio, 1, 1], dim=1)]
    return [rows]


def runs(sections: Sequence[int], groups: int, kept: Sequence[int]) -> torch.Tensor:
    """Indices of the ``kept`` of ``groups`` equal runs in each of these consecutive sections."""
    chosen = torch.tensor(list(kept))
    start, found = 0, []
    for length in sections:
        size = length // groups
        found.append((start + chosen[:, None] * size + torch.arange(size)).reshape(-1))
        start += length
    return torch.cat(found)  # [kept * rows of a group]


def narrow(layer: torch.nn.Module, block: SubBlock, groups: int, kept: Sequence[int]) -> None:
    """Keep only these of the sub-block's ``groups`` groups, in place."""
    # All indices first: they are computed from widths that slicing changes, and may not divide.
    indices = {cut: owned(layer, block, cut, groups, kept) for cut in block.cuts}
    for cut, chosen in indices.items():
        slice_linear(layer.get_submodule(cut.linear), chosen, cut.dim)
    for path in block.vectors:
        owner, name = parameter_owner(layer, path)
        vector = getattr(owner, name)
        setattr(owner, name, taken(vector, runs([len(vector)], groups, kept), 0))
    _scale_numbers(layer, block, groups, len(kept))


def widen(layer: torch.nn.Module, block: SubBlock, groups: int, wanted: int) -> None:
    """Add groups of zeros behind the sub-block's ``groups`` until it has ``wanted``, in place.

    It computes what it did: the new columns of the linear that writes to the residual are zero,
    which is the mask that `coupling.proof` compares with a narrower sub-block.
    """
    # All places first, as in `narrow`: they come from widths that change below.
    places = {}
    for cut in block.cuts:
        larger = [length // groups * wanted for length in _sections(layer, block, cut, groups)]
        places[cut] = runs(larger, wanted, range(groups)), sum(larger)
    for cut, (indices, size) in places.items():
        linear: Any = layer.get_submodule(cut.linear)
        linear.weight = spread(linear.weight, indices, _stored(linear, cut.dim), size)
        if cut.dim == 0 and linear.bias is not None:
            linear.bias = spread(linear.bias, indices, 0, size)
        _remember(linear, cut.dim, size)
    for path in block.vectors:
        owner, name = parameter_owner(layer, path)
        # Such as a weight for each head: it scales what is zero.
        vector = getattr(owner, name)
        size = len(vector) // groups * wanted
        setattr(owner, name, spread(vector, torch.arange(len(vector)), 0, size))
    _scale_numbers(layer, block, groups, wanted)


def _scale_numbers(layer: torch.nn.Module, block: SubBlock, groups: int, wanted: int) -> None:
    """Change what the modules remember, such as a number of heads, from ``groups`` to ``wanted``."""
    for path, name in block.attributes:
        module = layer.get_submodule(path)
        setattr(module, name, scaled(getattr(module, name), groups, wanted))
    if block.own_config:
        attention: Any = layer.get_submodule(block.modules[-1])
        attention.config = scaled_config(attention.config, groups, wanted)


def scaled_config(config: Any, groups: int, wanted: int) -> Any:
    """A copy of ``config`` for an attention that has ``wanted`` KV groups and had ``groups``."""
    found = copy.deepcopy(config)
    for name in HEAD_FIELDS:
        value = getattr(found, name, None)
        if isinstance(value, int):
            setattr(found, name, scaled(value, groups, wanted))
    return found


def scaled(value: int, groups: int, wanted: int) -> int:
    """``value`` changed in proportion."""
    return value * wanted // groups


def slice_linear(linear: Any, indices: torch.Tensor, dim: int) -> None:
    """Keep rows (0) or columns (1) of a linear's or Conv1D's weight [out, in], and of its bias."""
    linear.weight = taken(linear.weight, indices, _stored(linear, dim))
    if dim == 0 and linear.bias is not None:
        linear.bias = taken(linear.bias, indices, 0)
    _remember(linear, dim, len(indices))


def _remember(linear: Any, dim: int, size: int) -> None:
    """Tell a linear how many rows (0) or columns (1) its weight has now."""
    names = ("out_features", "nf") if dim == 0 else ("in_features", "nx")
    for name in names:
        if hasattr(linear, name):
            setattr(linear, name, size)


def taken(parameter: torch.nn.Parameter, indices: torch.Tensor, dim: int) -> torch.nn.Parameter:
    """A new parameter with these entries of dimension ``dim``."""
    chosen = parameter.detach().index_select(dim, indices.to(parameter.device))
    return torch.nn.Parameter(chosen, requires_grad=parameter.requires_grad)


def spread(
    parameter: torch.nn.Parameter, places: torch.Tensor, dim: int, size: int
) -> torch.nn.Parameter:
    """A new parameter of ``size`` entries along ``dim``: the old ones at ``places``, else zeros."""
    shape = list(parameter.shape)
    shape[dim] = size
    found = parameter.detach().new_zeros(shape)
    found.index_copy_(dim, places.to(parameter.device), parameter.detach())
    return torch.nn.Parameter(found, requires_grad=parameter.requires_grad)


def parameter_owner(layer: torch.nn.Module, path: str) -> tuple[Any, str]:
    """The module that owns the parameter at ``path``, and the parameter's name in it."""
    parent, _, name = path.rpartition(".")
    return layer.get_submodule(parent), name


def _stored(linear: Any, dim: int) -> int:
    return 1 - dim if is_transposed(linear) else dim


def is_transposed(linear: Any) -> bool:
    """Whether the weight is stored as [in, out]: transformers' Conv1D."""
    return type(linear).__name__ == "Conv1D"


def is_linear(module: Any) -> bool:
    """Whether the module multiplies by a matrix of its own: a Linear or a Conv1D."""
    return isinstance(module, torch.nn.Linear) or is_transposed(module)
