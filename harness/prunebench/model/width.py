"""Make a model narrower: fewer KV groups, MLP channels or residual channels, smaller matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from prunebench.errors import PrunebenchError
from prunebench.model.anatomy import Anatomy, Block, anatomy, width
from prunebench.model.families import KINDS, Kind
from prunebench.model.replacement import is_replaced
from prunebench.model.surgery import configs


def keep_groups(model: Any, kept: Mapping[Block, Sequence[int]]) -> None:
    """Keep only these KV groups of attentions, or channels of MLPs, in place.

    A KV group is one key-value head with the query heads that read it, so their ratio stays.
    ``kept`` has ascending indices into the sub-blocks as they are now; other sub-blocks stay whole.
    Raises PrunebenchError, with the model unchanged, if a sub-block would lose all or an index is
    unknown.
    """
    parts = anatomy(model)
    layers = list(parts.layers)
    present = {block: parts.groups(layers[block.layer], block.kind) for block in kept}
    for block, indices in kept.items():
        what = "KV groups" if block.kind == "attention" else "MLP channels"
        _check_kept(indices, present[block], f"layer {block.layer}, {what}")
    narrower = [block for block, indices in kept.items() if len(indices) < present[block]]
    for block in narrower:
        _keep(parts, layers[block.layer], block.kind, present[block], kept[block])
    if narrower:  # otherwise the config must stay as it is, too
        sync_config(model)


def _keep(
    parts: Anatomy, layer: torch.nn.Module, kind: Kind, present: int, kept: Sequence[int]
) -> None:
    for cut in parts.cuts(kind):
        linear: Any = layer.get_submodule(cut.linear)
        # A group owns ``size`` consecutive rows or columns, so expand its index to theirs.
        size = width(linear, cut.dim) // present
        indices = (torch.tensor(kept)[:, None] * size + torch.arange(size)).reshape(
            -1
        )  # [kept*size]
        _slice(linear, indices, cut.dim)
    _update_attributes(parts, layer, kind)


def keep_hidden(model: Any, kept: Sequence[int]) -> None:
    """Keep only these channels of the residual stream, in place.

    This cuts the embeddings, the norms, all linears and the head. Raises PrunebenchError, with the
    model unchanged, if no channel would remain, an index is unknown, or the family scales or
    projects its embeddings by the width (Gemma, OPT-350m).
    """
    parts = anatomy(model)
    hidden = hidden_size(parts)
    _check_kept(kept, hidden, "residual channels")
    if len(kept) == hidden:
        return
    _check_embeddings(parts)
    _check_replaced(parts)
    indices = torch.tensor(kept)
    head: Any = parts.head
    tied = head.weight is parts.embeddings.weight
    # All embeddings, because OPT also adds an embedding of the position: each is [entries, hidden].
    embeddings: list[Any] = [
        module for module in parts.decoder.modules() if isinstance(module, torch.nn.Embedding)
    ]
    for embedding in embeddings:
        embedding.weight = _taken(embedding.weight, indices, 1)
        embedding.embedding_dim = len(kept)
    _narrow_norms(parts, indices)
    for layer in parts.layers:
        for kind in KINDS:
            if parts.has(layer, kind):
                *into, out = parts.cuts(kind)
                for cut in into:
                    _slice(layer.get_submodule(cut.linear), indices, 1)  # reads the residual
                _slice(layer.get_submodule(out.linear), indices, 0)  # writes to it
    if tied:
        head.weight, head.in_features = parts.embeddings.weight, len(kept)
    else:
        _slice(head, indices, 1)
    sync_config(model)


def _check_embeddings(parts: Anatomy) -> None:
    projected = parts.model_type == "opt" and any(
        getattr(parts.decoder, name, None) is not None for name in ("project_in", "project_out")
    )
    if parts.model_type == "gemma" or projected:
        raise PrunebenchError(
            f"residual channels of this {parts.model_type} model cannot be removed: "
            "its embeddings depend on their number",
            hint="prune KV groups and MLP channels instead",
        )


def _check_replaced(parts: Anatomy) -> None:
    for index, layer in enumerate(parts.layers):
        if is_replaced(layer):
            raise PrunebenchError(
                f"residual channels cannot be removed: a trained network is in the place of layer"
                f" {index}",
                hint="remove them first, and let the recovery `streamline` train the network then",
            )


def _narrow_norms(parts: Anatomy, indices: torch.Tensor) -> None:
    """Cut the norms that read the residual stream: the final one and the direct children of layers.

    Norms inside an attention (Qwen3) have the size of a head, and stay.
    """
    norms: list[Any] = [
        parts.final_norm,
        *(child for layer in parts.layers for child in layer.children()),
    ]
    for norm in norms:
        weight = getattr(norm, "weight", None)
        if weight is not None and weight.dim() == 1:  # linears that are direct children have 2
            _narrow_norm(norm, indices)


def hidden_size(parts: Anatomy) -> int:
    """Number of channels of the residual stream."""
    return int(parts.embeddings.weight.shape[1])


def sync_config(model: Any) -> None:
    """Write the widths that all layers share into the config.

    If layers differ, or the family's config refuses a width, the old and larger width stays. The
    pruning file then holds the widths of each layer.
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
            # The default, hidden_size / heads, would be wrong after either of them changed.
            if attention is not None:
                changes["head_dim"] = parts.head_dim(attention)
            if len(groups) == 1 and attention is not None:
                heads = width(attention.get_submodule(parts.cuts("attention")[-1].linear), 1)
                changes["num_attention_heads"] = heads // parts.head_dim(attention)
                changes["num_key_value_heads"] = min(groups)
        _change(config, changes)


def _change(config: Any, changes: dict[str, Any]) -> None:
    """Apply ``changes``, or none of them if the config could not be loaded afterwards."""
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
            f"{what}: all {present} would be removed", hint="ask for a lower sparsity"
        )
    if list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= present:
        raise PrunebenchError(
            f"{what}: the kept indices are not an ascending selection of 0 to {present - 1}",
            hint="count from the model as it is now, and name each index once",
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


def _update_attributes(parts: Anatomy, layer: torch.nn.Module, kind: Kind) -> None:
    """Correct the widths that a module remembers; most families read them off their tensors."""
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
