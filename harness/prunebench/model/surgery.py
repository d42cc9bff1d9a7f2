"""Taking whole decoder layers out of a model, so that it still saves, loads and generates with a KV cache."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from prunebench.errors import PrunebenchError
from prunebench.model.anatomy import anatomy


def remove_layers(model: Any, indices: Iterable[int]) -> None:
    """Remove the decoder layers with these indices, in place; the rest stays as it is, weight for weight.

    Besides the modules this mends what counts layers: the depth and per-layer lists in the config, and the
    ``layer_idx`` by which an attention finds its part of the KV cache.
    Raises PrunebenchError, with the model unchanged, for an index that is not there or twice, or if no layer would stay.
    """
    parts = anatomy(model)
    depth = len(parts.layers)
    gone = list(indices)
    unknown = sorted({index for index in gone if not 0 <= index < depth})
    if unknown:
        raise PrunebenchError(
            f"no layer {', '.join(map(str, unknown))} to remove: the model has layers 0 to {depth - 1}",
            hint="count from 0, and from the model as it is now",
        )
    if len(set(gone)) < len(gone):
        raise PrunebenchError(f"a layer to remove is named twice: {sorted(gone)}", hint="name each layer once")
    if len(gone) == depth:
        raise PrunebenchError(f"all {depth} layers would be removed", hint="leave at least one layer")
    kept = [index for index in range(depth) if index not in set(gone)]
    _replace(model, parts.layers_path, torch.nn.ModuleList([parts.layers[index] for index in kept]))
    for place, layer in enumerate(parts.layers):
        modules: Iterable[Any] = layer.modules()
        for module in modules:
            if hasattr(module, "layer_idx"):
                module.layer_idx = place
    for config in _configs(model):
        _shorten(config, kept, depth)


def _replace(model: torch.nn.Module, path: str, module: torch.nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _configs(model: torch.nn.Module) -> list[Any]:
    """All config objects that the model's modules read, each once; usually one."""
    found: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "get_text_config"):
            for each in (config, config.get_text_config(decoder=True)):
                found[id(each)] = each
    return list(found.values())


def _shorten(config: Any, kept: list[int], depth: int) -> None:
    if getattr(config, "num_hidden_layers", None) != depth:
        return
    per_layer = {
        name: [value[index] for index in kept]
        for name, value in vars(config).items()
        if "layer" in name and isinstance(value, list | tuple) and len(value) == depth
    }
    config.num_hidden_layers = len(kept)
    for name, value in per_layer.items():
        setattr(config, name, value)
    full = getattr(config, "max_window_layers", None)  # Qwen: so many layers from the bottom attend without a window
    if isinstance(full, int):
        config.max_window_layers = sum(index < full for index in kept)
