"""Making a model narrower: fewer KV groups, MLP channels or residual channels, really smaller matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from prunebench.errors import PrunebenchError
from prunebench.model.anatomy import Anatomy, Block, anatomy, width
from prunebench.model.families import KINDS, Kind
from prunebench.model.surgery import configs


def keep_groups(model: Any, kept: Mapping[Block, Sequence[int]]) -> None:
    """Keep these KV groups of attentions, or channels of MLPs, in place; the rest of these sub-blocks goes for good.

    A KV group is one key-value head with the query heads that read it, so their ratio stays. ``kept`` has indices of the
    sub-blocks as they are now, in order. Raises PrunebenchError, with the model unchanged, where none would stay or
    an index is not there.
    """
    parts = anatomy(model)
    layers = list(parts.layers)
    present = {block: parts.groups(layers[block.layer], block.kind) for block in kept}
    for block, indices in kept.items():
        what = "KV groups" if block.kind == "attention" else "MLP channels"
        _check_kept(indices, present[block], f"layer {block.layer}, {what}")
    for block, indices in kept.items():
        if len(indices) < present[block]:
            _keep(parts, layers[block.layer], block.kind, present[block], indices)
    sync_config(model)


def _keep(
    parts: Anatomy, layer: torch.nn.Module, kind: Kind, present: int, kept: Sequence[int]
) -> None:
    for cut in parts.cuts(kind):
        linear: Any = layer.get_submodule(cut.linear)
        size = width(linear, cut.dim) // present  # consecutive rows or columns of one group
        indices = (torch.tensor(kept)[:, None] * size + torch.arange(size)).reshape(-1)
        _slice(linear, indices, cut.dim)
    _tell_modules(parts, layer, kind)


def keep_hidden(model: Any, kept: Sequence[int]) -> None:
    """Keep these channels of the residual stream everywhere: embeddings, norms, all linears and the head, in place.

    Raises PrunebenchError, with the model unchanged, where none would stay, an index is not there, or the family scales
    or projects its embeddings by the width (Gemma, OPT-350m).
    """
    parts = anatomy(model)
    hidden = hidden_size(parts)
    _check_kept(kept, hidden, "residual channels")
    if len(kept) == hidden:
        return
    if parts.model_type == "gemma" or any(
        getattr(parts.decoder.get_submodule(parent), name, None) is not None
        for parent, name in (("decoder", "project_in"), ("decoder", "project_out"))
        if parts.model_type == "opt"
    ):
        raise PrunebenchError(
            f"residual channels of this {parts.model_type} model cannot go: its embeddings depend on their number",
            hint="prune KV groups and MLP channels instead",
        )
    indices = torch.tensor(kept)
    head: Any = parts.head
    tied = head.weight is parts.embeddings.weight
    embeddings: list[Any] = [
        module for module in parts.decoder.modules() if isinstance(module, torch.nn.Embedding)
    ]  # OPT: positions too
    for embedding in embeddings:
        embedding.weight = _taken(embedding.weight, indices, 1)
        embedding.embedding_dim = len(kept)
    norms: list[Any] = [
        parts.final_norm,
        *(child for layer in parts.layers for child in layer.children()),
    ]
    for norm in norms:
        if (
            norm is not None
            and getattr(norm, "weight", None) is not None
            and norm.weight.dim() == 1
        ):
            _narrow_norm(norm, indices)
    for layer in parts.layers:
        for kind in KINDS:
            if parts.has(layer, kind):
                *into, out = parts.cuts(kind)
                for cut in into:
                    _slice(layer.get_submodule(cut.linear), indices, 1)
                _slice(layer.get_submodule(out.linear), indices, 0)
    if tied:
        head.weight, head.in_features = parts.embeddings.weight, len(kept)
    else:
        _slice(head, indices, 1)
    sync_config(model)


def hidden_size(parts: Anatomy) -> int:
    """Channels of the residual stream, as the embeddings have them."""
    return int(parts.embeddings.weight.shape[1])


def sync_config(model: Any) -> None:
    """Let the config say what it can: the widths that all layers have in common.

    Where layers differ, or the family's config refuses a width, it keeps those of before, which are at least as large; the
    plan file has the rest.
    """
    parts = anatomy(model)
    groups = {parts.groups(layer, "attention") for layer in parts.layers}
    channels = {parts.groups(layer, "mlp") for layer in parts.layers}
    for config in configs(model):
        changes: dict[str, Any] = {}
        if len(channels) == 1 and 0 not in channels:
            changes[parts.family.mlp_width] = min(channels)
        if parts.family.heads_in_config:
            changes["hidden_size"] = hidden_size(parts)
            attention = next(
                (layer for layer in parts.layers if parts.has(layer, "attention")), None
            )
            if attention is not None:
                changes["head_dim"] = parts.head_dim(attention)
            if len(groups) == 1 and attention is not None:
                heads = width(attention.get_submodule(parts.cuts("attention")[-1].linear), 1)
                changes["num_attention_heads"] = heads // parts.head_dim(attention)
                changes["num_key_value_heads"] = min(groups)
        _change(config, changes)


def _change(config: Any, changes: dict[str, Any]) -> None:
    """Set what differs, or nothing where the config would not load any more."""
    before = {name: getattr(config, name, None) for name in changes}
    if before != changes:
        _set(config, changes)
        if not _loads(config):  # some families check that the heads divide the width
            _set(config, before)


def _set(config: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(config, name, value)


def _loads(config: Any) -> bool:
    try:
        type(config).from_dict(config.to_dict())
    except Exception:
        return False
    return True


def _check_kept(kept: Sequence[int], present: int, what: str) -> None:
    if not kept:
        raise PrunebenchError(
            f"{what}: all {present} would be removed", hint="ask for a smaller share"
        )
    if list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= present:
        raise PrunebenchError(
            f"{what}: kept indices are not an ordered selection of 0 to {present - 1}",
            hint="count from the model as it is now, and name each once",
        )


def _slice(linear: Any, indices: torch.Tensor, dim: int) -> None:
    """Keep rows (0) or columns (1) of a linear's weight [out, in], and of its bias."""
    linear.weight = _taken(linear.weight, indices, dim)
    if dim == 0:
        linear.out_features = len(indices)
        if linear.bias is not None:
            linear.bias = _taken(linear.bias, indices, 0)
    else:
        linear.in_features = len(indices)


def _narrow_norm(norm: Any, indices: torch.Tensor) -> None:
    norm.weight = _taken(norm.weight, indices, 0)
    if getattr(norm, "bias", None) is not None:
        norm.bias = _taken(norm.bias, indices, 0)
    if hasattr(norm, "normalized_shape"):
        norm.normalized_shape = (len(indices),)


def _taken(parameter: torch.nn.Parameter, indices: torch.Tensor, dim: int) -> torch.nn.Parameter:
    chosen = parameter.detach().index_select(dim, indices.to(parameter.device))
    return torch.nn.Parameter(chosen, requires_grad=parameter.requires_grad)


def _tell_modules(parts: Anatomy, layer: torch.nn.Module, kind: Kind) -> None:
    """Mend what modules remember of their widths; most families read them off the tensors."""
    module: Any = layer.get_submodule(parts.family.blocks[kind][0])
    if kind == "mlp":
        if hasattr(module, "intermediate_size"):
            module.intermediate_size = parts.groups(layer, "mlp")
        return
    out = parts.cuts("attention")[-1].linear
    heads = width(layer.get_submodule(out), 1) // parts.head_dim(layer)
    for name, value in (
        ("num_heads", heads),
        ("num_key_value_heads", parts.groups(layer, "attention")),
    ):
        if hasattr(module, name):
            setattr(module, name, value)
