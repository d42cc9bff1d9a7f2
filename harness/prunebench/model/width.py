"""Make a model narrower: fewer KV groups, MLP channels or residual channels, smaller matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from prunebench.errors import PrunebenchError
from prunebench.model.anatomy import Anatomy, Block, anatomy
from prunebench.model.coupling.residual import narrow_model
from prunebench.model.coupling.slices import narrow
from prunebench.model.coupling.sub_block import Kind
from prunebench.model.coupling.whole import head_dim_of
from prunebench.model.depth import text_configs


def keep_groups(model: Any, kept: Mapping[Block, Sequence[int]]) -> None:
    """Keep only these KV groups of attentions, or channels of MLPs, in place.

    A KV group is one key-value head with the query heads that read it, so their ratio stays.
    ``kept`` has ascending indices into the sub-blocks as they are now; other sub-blocks stay whole.
    Raises PrunebenchError, with the model unchanged, if a sub-block would lose all, an index is
    unknown, or nothing proves which rows and columns belong together.
    """
    parts = anatomy(model)
    layers = list(parts.layers)
    present = {block: parts.groups(layers[block.layer], block.kind) for block in kept}
    for block, indices in kept.items():
        what = "KV groups" if block.kind == "attention" else "MLP channels"
        _check_kept(indices, present[block], f"layer {block.layer}, {what}")
    narrower = [block for block, indices in kept.items() if len(indices) < present[block]]
    for block in narrower:
        layer = layers[block.layer]
        narrow(layer, parts.cuttable(layer, block.kind), present[block], kept[block])
    if narrower:  # otherwise the config must stay as it is, too
        sync_config(model)


def keep_hidden(model: Any, kept: Sequence[int]) -> None:
    """Keep only these channels of the residual stream, in place.

    This cuts the embeddings, the norms, all that reads or writes the stream, and the head. Raises
    PrunebenchError, with the model unchanged, if no channel would remain, an index is unknown, or
    it is not proved for this family, for example because it scales or projects its embeddings by
    the width (Gemma, OPT-350m).
    """
    parts = anatomy(model)
    hidden = hidden_size(parts)
    _check_kept(kept, hidden, "residual channels")
    if len(kept) == hidden:
        return
    _check_layers(parts)
    if (reason := parts.coupling.no_hidden) is not None:
        raise PrunebenchError(
            f"residual channels of this {parts.model_type} model cannot be removed: {reason}",
            hint="prune KV groups and MLP channels instead",
        )
    dims = [parts.coupled(layer).residual for layer in parts.layers]
    narrow_model(model, parts.layers, dims, torch.tensor(kept))
    sync_config(model)


def _check_layers(parts: Anatomy) -> None:
    # Here, because they define torch modules, and plugins import this one before torch is loaded.
    from prunebench.model.indexed import is_indexed
    from prunebench.model.replacement import is_replaced
    from prunebench.model.rotated import is_rotated

    for index, layer in enumerate(parts.layers):
        if is_rotated(layer) or is_indexed(layer):
            raise PrunebenchError(
                f"residual channels cannot be removed: layer {index} does not read and write all of"
                " them as they are",
                hint="remove them before another method changes the residual stream",
            )
        if is_replaced(layer):
            raise PrunebenchError(
                f"residual channels cannot be removed: a trained network is in the place of layer"
                f" {index}",
                hint="remove them first, and let the recovery `streamline` train the network then",
            )


def hidden_size(parts: Anatomy) -> int:
    """Number of channels of the residual stream."""
    return int(parts.embeddings.weight.shape[1])


def sync_config(model: Any) -> None:
    """Write the widths that all layers share into the config.

    If layers differ, or the family's config refuses a width, the old and larger width stays. The
    pruning file then holds the widths of each layer.
    """
    parts = anatomy(model)
    coupling = parts.coupling
    for config in text_configs(parts):
        changes: dict[str, Any] = {}
        channels = _shared(parts, "mlp")
        if coupling.channels_field and channels:
            changes[coupling.channels_field] = channels
        if coupling.hidden_in_config:
            changes["hidden_size"] = hidden_size(parts)
        if coupling.hidden_in_config or coupling.heads_in_config:
            # The default, hidden_size / heads, would be wrong after either of them changed.
            attention = next(
                (layer for layer in parts.layers if parts.can_cut(layer, "attention")), None
            )
            size = head_dim_of(parts.layers) if attention is None else parts.head_dim(attention)
            # Latent attention: the config's head_dim is that of another part of a head.
            if size is not None and getattr(config, "head_dim", None) in {None, size}:
                changes["head_dim"] = size
        if coupling.heads_in_config and (groups := _shared(parts, "attention")):
            heads = next(
                block.heads
                for layer in parts.layers
                if (block := parts.sub_block(layer, "attention")) is not None and block.heads
            )
            changes["num_attention_heads"] = groups * heads.query // heads.keys
            changes["num_key_value_heads"] = groups
        _change(config, changes)


def _shared(parts: Anatomy, kind: Kind) -> int | None:
    """KV groups or channels of all sub-blocks of this kind; None if they differ or one is gone."""
    counts = {
        parts.groups(layer, kind)
        for layer in parts.layers
        if (block := parts.sub_block(layer, kind)) is not None and block.no_cut is None
    }
    return counts.pop() if len(counts) == 1 and 0 not in counts else None


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
