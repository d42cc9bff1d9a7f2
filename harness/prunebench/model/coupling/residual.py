"""The channels of the residual stream: which parameters have one entry for each, and the proof.

A norm averages over all channels, so zeros alone do not silence one. In the masked model of the
proof each norm is computed over the kept channels, and gives zero for the others.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from prunebench.model.coupling.slices import is_linear, parameter_owner, slice_linear, taken
from prunebench.model.coupling.sub_block import Kind, SubBlock
from prunebench.model.coupling.trace import is_at

_NORM = re.compile(r"norm|^ln_|layer_?norm", re.IGNORECASE)

Dims = tuple[tuple[str, int], ...]


class UnknownParameterError(Exception):
    """A parameter that may belong to the residual stream, and no rule says so."""


def in_layer(layer: torch.nn.Module, blocks: dict[Kind, SubBlock], hidden: int) -> Dims:
    """(parameter, dimension) of a layer's parameters with an entry for each of ``hidden`` channels.

    Raises UnknownParameterError if a parameter of this size belongs to nothing that is known.
    """
    readers = {path for block in blocks.values() for path in block.readers}
    writers = {block.writer for block in blocks.values()}
    inside = [path for block in blocks.values() for path in block.modules]
    found: list[tuple[str, int]] = []
    for name, parameter in layer.named_parameters():
        owner, own = parameter_owner(layer, name)
        path = name.rpartition(".")[0]
        within = any(is_at(path, each) for each in inside)
        if is_linear(owner) and (path in readers or path in writers):
            if own == "weight":
                found.append((path, 1 if path in readers else 0))
        elif not within and parameter.dim() == 1 and len(parameter) == hidden and _is_norm(owner):
            found.append((name, 0))
        elif within and "experts" not in name and _in_attention(blocks, path):
            continue  # heads and what they share
        else:
            dims = [dim for dim, size in enumerate(parameter.shape) if size == hidden]
            if len(dims) > 1 or (dims and not within):
                raise UnknownParameterError(f"no rule says what {name} does with them")
            found += [(name, dim) for dim in dims]
    return tuple(found)


def _in_attention(blocks: dict[Kind, SubBlock], path: str) -> bool:
    attention = blocks.get("attention")
    return attention is not None and any(is_at(path, each) for each in attention.modules)


def _is_norm(module: torch.nn.Module) -> bool:
    return bool(_NORM.search(type(module).__name__))


def outside(model: Any, layers: torch.nn.ModuleList, hidden: int) -> list[torch.nn.Module]:
    """The embeddings and norms outside the layers that have an entry for each channel.

    The head is not among them. Raises UnknownParameterError if there is anything else.
    """
    inside = {id(module) for module in layers.modules()}
    head = model.get_output_embeddings()
    found: list[torch.nn.Module] = []
    for path, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if id(module) in inside or module is head or not own:
            continue
        sizes = [size for parameter in own.values() for size in parameter.shape]
        embeds = isinstance(module, torch.nn.Embedding) and module.embedding_dim == hidden
        if isinstance(module, torch.nn.Embedding) and not embeds:
            message = f"its embeddings depend on their number, or {path} does"
            raise UnknownParameterError(message)
        if not embeds and not (_is_norm(module) and set(sizes) == {hidden}):
            raise UnknownParameterError(f"no rule says what {path} does with them")
        found.append(module)
    return found


def narrow_layer(layer: torch.nn.Module, dims: Dims, kept: torch.Tensor, hidden: int) -> None:
    """Keep these of ``hidden`` residual channels of a layer, in place.

    Parts that were removed are left out.
    """
    for name, dim in dims:
        try:
            target = layer.get_submodule(name)
        except AttributeError:
            target = None
        if target is not None:
            if is_linear(target):
                slice_linear(target, kept, dim)
            continue
        try:
            owner, own = parameter_owner(layer, name)
        except AttributeError:
            continue
        if getattr(owner, own, None) is None:
            continue
        if _is_norm(owner):
            narrow_norm(owner, kept, own)
        else:
            setattr(owner, own, taken(getattr(owner, own), kept, dim))
    for module in layer.modules():  # routers and experts reshape by the width that they remember
        for remembered in ("hidden_size", "hidden_dim"):
            if getattr(module, remembered, None) == hidden and _holds_experts(module):
                setattr(module, remembered, len(kept))


def _holds_experts(module: torch.nn.Module) -> bool:
    return any(
        "expert" in type(each).__name__.lower() or "router" in type(each).__name__.lower()
        for each in module.modules()
    )


def narrow_outside(module: torch.nn.Module, kept: torch.Tensor) -> None:
    """Keep these channels of an embedding or a norm, in place."""
    if isinstance(module, torch.nn.Embedding):
        embedding: Any = module
        embedding.weight = taken(embedding.weight, kept, 1)
        module.embedding_dim = len(kept)
        return
    for name, _ in list(module.named_parameters(recurse=False)):
        narrow_norm(module, kept, name)


def narrow_norm(norm: Any, kept: torch.Tensor, name: str) -> None:
    """Keep these entries of one parameter of a norm, and correct the size that it remembers."""
    setattr(norm, name, taken(getattr(norm, name), kept, 0))
    if hasattr(norm, "normalized_shape"):
        norm.normalized_shape = (len(kept),)


def narrow_model(
    model: Any, layers: torch.nn.ModuleList, dims: Sequence[Dims], kept: torch.Tensor
) -> None:
    """Keep these residual channels of a whole model, in place; tied embeddings stay tied."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head.weight is embeddings.weight
    hidden = int(embeddings.weight.shape[1])
    for module in outside(model, layers, hidden):
        narrow_outside(module, kept)
    for layer, own in zip(layers, dims, strict=True):
        narrow_layer(layer, own, kept, hidden)
    if tied:
        head.weight, head.in_features = embeddings.weight, len(kept)
    else:
        slice_linear(head, kept, 1)


def mask_model(
    model: Any, layers: torch.nn.ModuleList, dims: Sequence[Dims], kept: torch.Tensor
) -> None:
    """Silence all other residual channels of a whole model, in place."""
    # Here, because it defines a torch module.
    from prunebench.model.coupling.norm_of_some import NormOfSome

    hidden = int(model.get_input_embeddings().weight.shape[1])
    # Readers need no mask: the norms before them give zeros at these channels.
    gone = torch.ones(hidden, dtype=torch.bool)
    gone[kept] = False
    for module in outside(model, layers, hidden):
        if isinstance(module, torch.nn.Embedding):
            module.weight[:, gone] = 0
    for layer, own in zip(layers, dims, strict=True):
        for name, dim in own:
            _mask(layer, name, dim, gone)
    for path, module in _norms(model, layers, dims, hidden):
        owner, _, name = path.rpartition(".")
        norm = copy.deepcopy(module)
        narrow_outside(norm, kept)
        setattr(model.get_submodule(owner), name, NormOfSome(norm, kept))


def _mask(layer: torch.nn.Module, name: str, dim: int, gone: torch.Tensor) -> None:
    try:
        linear: Any = layer.get_submodule(name)
    except AttributeError:
        owner, own = parameter_owner(layer, name)
        if not _is_norm(owner):
            parameter = getattr(owner, own)
            parameter[(slice(None),) * dim + (gone,)] = 0
        return
    if dim == 0:  # it writes to the residual stream
        stored = linear.weight.T if type(linear).__name__ == "Conv1D" else linear.weight
        stored[gone] = 0
        if linear.bias is not None:
            linear.bias[gone] = 0


def _norms(
    model: Any, layers: torch.nn.ModuleList, dims: Sequence[Dims], hidden: int
) -> Iterator[tuple[str, torch.nn.Module]]:
    """(path in the model, module) of all norms over the residual stream."""
    wanted = {id(module) for module in outside(model, layers, hidden) if _is_norm(module)}
    for layer, own in zip(layers, dims, strict=True):
        for name, _ in own:
            try:
                owner, _own = parameter_owner(layer, name)
            except AttributeError:
                continue
            if _is_norm(owner):
                wanted.add(id(owner))
    yield from [(path, each) for path, each in model.named_modules() if id(each) in wanted]
