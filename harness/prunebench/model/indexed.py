"""Layers whose attention and MLP read and write channels of their own of the residual stream.

The stream, the embeddings, the norms and the head keep their width. A sub-block selects channels of
the normalised stream, its first and last matrices have only these, and what it computes is added to
the channels that it writes to (arXiv:2410.11988, section 3). So layers share nothing, and the only
new tensors are the indices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch

from prunebench.errors import PrunebenchError
from prunebench.model.anatomy import Anatomy, Block, anatomy
from prunebench.model.coupling.sub_block import KINDS, Kind
from prunebench.model.rotated import PARTS, is_rotated, resize, states_in

READS: Mapping[Kind, str] = {"attention": "attention_reads", "mlp": "mlp_reads"}
"""Buffers of an indexed layer: the channels that a sub-block reads, int32, ascending."""
WRITES: Mapping[Kind, str] = {"attention": "attention_writes", "mlp": "mlp_writes"}
"""The channels that it adds to."""
INDICES = tuple(names[kind] for kind in KINDS for names in (READS, WRITES))
_MODULES: Mapping[Kind, str] = {"attention": "self_attn", "mlp": "mlp"}
_HINT = "prune KV groups and MLP channels instead, for example with llm-pruner"
_TOKENS = 8


def is_indexed(layer: torch.nn.Module) -> bool:
    """Whether the sub-blocks of this layer have channels of their own."""
    return hasattr(layer, INDICES[0])


def indices_of_layer(layer: Any) -> dict[str, list[int]]:
    """The channels that the sub-blocks of a layer read and write, by `INDICES`.

    Nothing if the layer is as it was.
    """
    if not is_indexed(layer):
        return {}
    return {name: getattr(layer, name).tolist() for name in INDICES}


def sizes_of_layer(layer: Any) -> tuple[int, int, int, int]:
    """How many channels the attention reads and writes, and the MLP."""
    first, second, third, fourth = (len(getattr(layer, name)) for name in INDICES)
    return first, second, third, fourth


def index_residual(
    model: Any, reads: Mapping[Block, Sequence[int]], writes: Mapping[Block, Sequence[int]]
) -> None:
    """Let attentions and MLPs read, and write, only these channels of the residual stream.

    In place, in smaller matrices; sub-blocks that are not named keep all channels, and may get
    their own in a later call. Raises PrunebenchError, with the model unchanged, if indices are
    wrong, or if layers are not one attention and one MLP, each behind a norm and added to the
    stream.
    """
    parts = anatomy(model)
    width = int(parts.embeddings.weight.shape[1])
    for what, chosen in (("reads", reads), ("writes", writes)):
        for block, indices in chosen.items():
            _check_indices(parts, block, indices, width, what)
    ends = [
        {kind: _ends(parts, index, kind) for kind in KINDS} for index in range(len(parts.layers))
    ]
    _prove(parts, width)
    for index, layer in enumerate(parts.layers):
        for kind in KINDS:
            readers, writer = ends[index][kind]
            if (columns := reads.get(Block(index, kind))) is not None:
                place = _set(layer, READS[kind], columns)
                for name in readers:
                    _keep(layer.get_submodule(name), place, dim=1)
            if (rows := writes.get(Block(index, kind))) is not None:
                _keep(layer.get_submodule(writer), _set(layer, WRITES[kind], rows), dim=0)


def narrow_indexed(model: Any, layers: Sequence[tuple[int, int, int, int]]) -> None:
    """Give a model that was just built the modules and sizes of an indexed one, in place.

    Its weights and indices are filled in later.
    """
    parts = anatomy(model)
    width = int(parts.embeddings.weight.shape[1])
    # Before anything is resized: the inputs are found by running the model.
    ends = [
        {kind: _ends(parts, index, kind) for kind in KINDS} for index in range(len(parts.layers))
    ]
    for layer, sizes, found in zip(parts.layers, layers, ends, strict=True):
        _index(layer, width)
        for name, size in zip(INDICES, sizes, strict=True):
            _set(layer, name, range(size))
        for kind, (columns, rows) in zip(KINDS, (sizes[:2], sizes[2:]), strict=True):
            readers, writer = found[kind]
            for reader in readers:
                resize(layer.get_submodule(reader), columns=columns)
            resize(layer.get_submodule(writer), rows=rows)


def _index(layer: Any, width: int) -> None:
    """Make a layer run with channels of its own, all of ``width`` to begin with."""
    device = next(layer.parameters()).device
    for name in INDICES:
        # Buffers, so that they are saved and moved. int32: half the bytes of what torch makes.
        every = torch.arange(width, dtype=torch.int32, device=device)
        layer.register_buffer(name, every)
    kind: Any = type(layer)
    layer.__class__ = _indexed_class(kind)


@cache
def _indexed_class(kind: Any) -> Any:
    """A subclass of a layer's class that selects and adds; it has the name by which it is found."""

    def forward(self: Any, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        # The norms see all channels: they were trained on the length of the whole stream.
        read = _selected(self.input_layernorm(hidden_states), self.attention_reads)
        attended = self.self_attn(hidden_states=read, **kwargs)
        between = _added(hidden_states, self.attention_writes, attended)
        read = _selected(self.post_attention_layernorm(between), self.mlp_reads)
        return _added(between, self.mlp_writes, self.mlp(read))

    named = {"forward": forward, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (kind,), named)


def _selected(states: torch.Tensor, channels: torch.Tensor) -> torch.Tensor:
    """[..., hidden] -> [..., channels]; all channels need no copy."""
    if len(channels) == states.shape[-1]:
        return states
    return states.index_select(-1, channels)


def _added(hidden: torch.Tensor, channels: torch.Tensor, output: Any) -> torch.Tensor:
    """The stream [..., hidden] plus what a module returns, [..., channels], at these channels."""
    states = states_in(output)
    # A removed attention or MLP returns the number 0, and one with all channels is simply added.
    if states.dim() == 0 or len(channels) == hidden.shape[-1]:
        return hidden + states
    # Under autocast the sub-block gives another type than the stream has.
    # Not in place: whoever asked for all hidden states still holds this one.
    return hidden.index_add(-1, channels, states.to(hidden.dtype))


def _check_indices(
    parts: Anatomy, block: Block, indices: Sequence[int], width: int, what: str
) -> None:
    if not 0 <= block.layer < len(parts.layers):
        raise PrunebenchError(
            f"no layer {block.layer}: the model has layers 0 to {len(parts.layers) - 1}",
            hint="count from 0, and from the model as it is now",
        )
    ascending = list(indices) == sorted(set(indices))
    if not indices or not ascending or indices[0] < 0 or indices[-1] >= width:
        raise PrunebenchError(
            f"{block} {what} channels that are not an ascending selection of 0 to {width - 1}",
            hint="name at least one channel, and each once",
        )


def _ends(parts: Anatomy, index: int, kind: Kind) -> tuple[tuple[str, ...], str]:
    """The linears of a sub-block that read the stream, and the one that writes to it.

    Raises PrunebenchError if the layer is not made of such blocks.
    """
    layer, block = parts.layers[index], _MODULES[kind]
    width = int(parts.embeddings.weight.shape[1])
    if is_rotated(layer) or (is_indexed(layer) and set(sizes_of_layer(layer)) != {width}):
        raise PrunebenchError(
            f"layer {index}: its part of the residual stream was changed before", hint=_HINT
        )
    children = {name for name, child in layer.named_children() if list(child.parameters())}
    if children != set(PARTS):
        odd = min(children ^ set(PARTS))
        raise PrunebenchError(
            f"layer {index} is not one attention and one MLP, each behind a norm ({odd})",
            hint=_HINT,
        )
    groups = [group for group in parts.inputs_of(layer) if group[0].startswith(f"{block}.")]
    linears = parts.linears(layer)
    ends = [linears[name] for group in (*groups[:1], *groups[-1:]) for name in group]
    plain = all(type(each) is torch.nn.Linear for each in ends)
    if len(groups) < 2 or len(groups[-1]) != 1 or not plain:
        raise PrunebenchError(
            f"layer {index}: {block} is not made of plain linears that read the residual stream"
            " and one that writes to it",
            hint=_HINT,
        )
    return groups[0], groups[-1][0]


@torch.no_grad()
def _prove(parts: Anatomy, width: int) -> None:
    """Change all layers, and raise PrunebenchError unless the logits stay as they were.

    With all channels of the stream, so that nothing but the order of the modules has changed.
    """
    # They were proved when they were changed first, and their layers are as they were then.
    if all(map(is_indexed, parts.layers)):
        return
    model = parts.model
    rows, weight = parts.embeddings.weight.shape[0], parts.embeddings.weight
    ids = torch.arange(_TOKENS, device=weight.device)[None] * (rows // _TOKENS)
    expected = model(ids, use_cache=False).logits.float()
    kinds = [type(layer) for layer in parts.layers]
    for layer in parts.layers:
        _index(layer, width)
    found = model(ids, use_cache=False).logits.float()
    difference = float((found - expected).abs().max())
    allowed = 1e-3 if weight.dtype in {torch.float32, torch.float64} else 0.05
    if difference <= allowed * float(expected.abs().max()):
        return
    for kind, layer in zip(kinds, parts.layers, strict=True):
        changed: Any = layer
        changed.__class__ = kind
        for name in INDICES:
            delattr(changed, name)
    raise PrunebenchError(
        f"the sub-blocks of a {kinds[0].__name__} cannot have channels of their own, because it"
        f" does more than to add them to the residual stream (a difference of {difference:.2g})",
        hint=_HINT,
    )


def _set(layer: Any, name: str, channels: Sequence[int]) -> torch.Tensor:
    """Write the indices into the layer's buffer; returns them as int64, on its device."""
    before: torch.Tensor = getattr(layer, name)
    if before.is_meta:
        setattr(layer, name, before.new_empty(len(channels)))
        return before
    place = torch.tensor(list(channels), device=before.device)
    setattr(layer, name, place.to(before.dtype))
    return place


def _keep(linear: Any, place: torch.Tensor, dim: int) -> None:
    """Keep these rows (dim 0), with their biases, or columns (1) of a linear."""
    for name in ("weight", "bias") if dim == 0 else ("weight",):
        parameter = getattr(linear, name)
        if parameter is None:
            continue
        # A copy: a view would keep the whole matrix in memory.
        kept = parameter.detach().index_select(dim, place).contiguous()
        setattr(linear, name, torch.nn.Parameter(kept, requires_grad=parameter.requires_grad))
    setattr(linear, "out_features" if dim == 0 else "in_features", len(place))
