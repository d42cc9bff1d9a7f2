"""Give a model the decoder layers back that were removed from it, for a while or for good."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from prunebench.model.anatomy import Anatomy, anatomy
from prunebench.model.depth import renumber_layers, text_configs
from prunebench.model.shorten import shorten


def restore_layers(model: Any, kept: Mapping[int, torch.nn.Module], dense: Any) -> None:
    """Give the model as many decoder layers as ``dense`` has, in place.

    ``kept``: some layers by their index there; the others are those of ``dense`` itself.
    """
    parts, whole = anatomy(model), anatomy(dense)
    found = dict(enumerate(whole.layers)) | dict(kept)
    layers = torch.nn.ModuleList(list(found.values()))
    layers.training = parts.layers.training
    renumber_layers(whole.layers, layers)
    # Both models are of one class, so their configs come in one order.
    for config, full in zip(text_configs(parts), text_configs(whole), strict=False):
        for name in _depth_fields(full, len(layers)):
            setattr(config, name, copy.deepcopy(getattr(full, name)))
    _put(parts, layers)


@contextmanager
def restored_layers(model: Any, kept: Mapping[int, torch.nn.Module], dense: Any) -> Iterator[None]:
    """As `restore_layers`, until the block ends; then the model is as it was."""
    parts = anatomy(model)
    layers = parts.layers
    before = [(config, dict(vars(config))) for config in text_configs(parts)]
    restore_layers(model, kept, dense)
    try:
        yield
    finally:
        renumber_layers(parts.layers, layers)
        _put(parts, layers)
        for config, fields in before:
            vars(config).clear()
            vars(config).update(fields)


def share_configs(model: Any, layer: torch.nn.Module) -> None:
    """Let the modules of ``layer``, which comes from a copy of ``model``, read its config."""
    own = (model.config, model.config.get_text_config(decoder=True))
    by_type = {type(each): each for each in own}
    for module in layer.modules():
        config = getattr(module, "config", None)
        if type(config) in by_type:
            module.config = by_type[type(config)]


def _depth_fields(config: Any, depth: int) -> list[str]:
    """The fields of a config that say something of each layer, or how many there are."""
    full = vars(config)
    found: set[str] = set()
    # A number of first layers may stay the same if the first or the last layer is left.
    for left in (0, depth - 1):
        shorter = copy.deepcopy(config)
        shorten(shorter, [left], depth)
        found |= {name for name, value in vars(shorter).items() if value != full.get(name)}
    return sorted(found)


def _put(parts: Anatomy, layers: torch.nn.ModuleList) -> None:
    owner, _, name = parts.layers_path.rpartition(".")
    setattr(parts.model.get_submodule(owner), name, layers)
