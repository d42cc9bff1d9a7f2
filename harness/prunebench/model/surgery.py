"""Remove layers, attentions and MLPs from a model.

The model still saves, loads and generates with a KV cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from prunebench.errors import PrunebenchError
from prunebench.model.anatomy import Anatomy, Block, anatomy
from prunebench.model.coupling.removal import replacements
from prunebench.model.depth import keep_layers


def remove_layers(model: Any, indices: Iterable[int]) -> None:
    """Remove the decoder layers with these indices, in place; all other weights stay as they are.

    This also corrects what counts layers: the depth and per-layer lists in the config, and the
    ``layer_idx`` by which an attention finds its part of the KV cache. Raises PrunebenchError, with
    the model unchanged, if an index is unknown or given twice, if no layer would remain, if a layer
    reads the cache of another one, or if no config can describe what remains.
    """
    parts = anatomy(model)
    depth = len(parts.layers)
    removed = list(indices)
    unknown = sorted({index for index in removed if not 0 <= index < depth})
    if unknown:
        raise PrunebenchError(
            f"no layer {', '.join(map(str, unknown))} to remove: "
            f"the model has layers 0 to {depth - 1}",
            hint="count from 0, and from the model as it is now",
        )
    if len(set(removed)) < len(removed):
        raise PrunebenchError(
            f"a layer to remove is named twice: {sorted(removed)}", hint="name each layer once"
        )
    if len(removed) == depth:
        raise PrunebenchError(
            f"all {depth} layers would be removed", hint="leave at least one layer"
        )
    kept = [index for index in range(depth) if index not in set(removed)]
    keep_layers(parts, kept)


def remove_blocks(model: Any, blocks: Iterable[Block]) -> None:
    """Remove attentions and MLPs with the norms before them, in place; the residual path stays.

    A layer that loses both stays as an empty layer; `remove_layers` removes it. Raises
    PrunebenchError, with the model unchanged, if a block is unknown or given twice, or if no proof
    says that it can be removed: so in models that normalise after the addition (OPT-350m).
    """
    parts = anatomy(model)
    removed = list(blocks)
    present = set(parts.blocks)
    unknown = sorted({str(block) for block in removed if block not in present})
    if unknown:
        raise PrunebenchError(
            f"no {', '.join(unknown)} to remove: "
            "there is no such layer, or the block was removed before",
            hint="count layers from 0, and from the model as it is now",
        )
    if len(set(removed)) < len(removed):
        raise PrunebenchError("a block to remove is named twice", hint="name each block once")
    check_bypass(parts, removed)
    for block in removed:
        layer = parts.layers[block.layer]
        for path, module in _replacements(parts, layer, block):
            replace(layer, path, module)


@contextmanager
def without(parts: Anatomy, index: int, kinds: Sequence[str]) -> Iterator[torch.nn.Module]:
    """The layer without these sub-blocks ('attention', 'mlp'), until the block ends."""
    layer = parts.layers[index]
    swapped = []
    for block in (Block(index, kind) for kind in ("attention", "mlp") if kind in kinds):
        if parts.has(layer, block.kind):
            for path, module in _replacements(parts, layer, block):
                swapped.append((path, layer.get_submodule(path)))
                replace(layer, path, module)
    try:
        yield layer
    finally:
        for path, module in swapped:
            replace(layer, path, module)


def check_bypass(parts: Anatomy, blocks: Iterable[Block] | None = None) -> None:
    """Raise PrunebenchError if these sub-blocks (None: all that are left) cannot be removed."""
    for layer, kind in parts.blocks if blocks is None else blocks:
        block = parts.sub_block(parts.layers[layer], kind)
        if block is not None and block.no_removal is not None:
            raise PrunebenchError(
                f"layer {layer}: {block.no_removal}",
                hint="remove whole layers (shortgpt), or take a model with norms before its blocks",
            )


def _replacements(
    parts: Anatomy, layer: torch.nn.Module, block: Block
) -> list[tuple[str, torch.nn.Module]]:
    """(path, new module) pairs that remove one sub-block and its norms."""
    found = parts.sub_block(layer, block.kind)
    assert found is not None
    return replacements(layer, found, block.layer)


def replace(model: torch.nn.Module, path: str, module: torch.nn.Module) -> None:
    """Put ``module`` at ``path``."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def configs(model: torch.nn.Module) -> list[Any]:
    """All config objects that the model's modules read, each once; usually there is one."""
    found: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "get_text_config"):
            for each in (config, config.get_text_config(decoder=True)):
                found[id(each)] = each
    return list(found.values())
