"""Remove decoder layers: what counts layers is counted again, and the config is checked by building.

A config tells per layer what it is in several ways: lists with an entry for each layer, lists of
layer numbers, the number of first layers of a kind, periods. Whatever it says, a model that is
built from the shortened config must have the layers that remain, kind by kind. Otherwise it would
be another model after loading, so nothing is removed.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from prunebench.errors import PrunebenchError
from prunebench.model.anatomy import Anatomy
from prunebench.model.layers import find_layers
from prunebench.model.meta_forward import first_line, run_on_meta
from prunebench.model.shorten import shorten

_INDEX = re.compile(r"^((layer|block)_?)?(idx|index|id|number)$")
"""Attributes by which a module knows its layer."""
_UNTOLD = {
    *("training", "_is_hf_initialized", "gradient_checkpointing"),
    *("attention_seed", "feed_forward_seed"),
}
"""Attributes of modules that do not say what a layer is; Reformer draws its seeds when it runs."""


def keep_layers(parts: Anatomy, kept: Sequence[int]) -> None:
    """Keep only these layers, in place; all other weights stay as they are.

    Raises PrunebenchError, with the model unchanged, if a layer reads the cache of another one, or
    if no config can describe the layers that remain.
    """
    layers = parts.layers
    # First what needs no building: a layer that reads the cache of another one is the most common
    # reason, and the clearest.
    _check_caches(layers)
    depth = len(layers)
    found = text_configs(parts)
    before = [copy.deepcopy(vars(config)) for config in found]
    was, runs = _dense_differences(parts)
    for config in found:
        shorten(config, kept, depth)
    try:
        _check_built(parts, kept, was, runs=runs)
    except PrunebenchError:
        for config, fields in zip(found, before, strict=True):
            vars(config).clear()
            vars(config).update(fields)
        raise
    rest = torch.nn.ModuleList([layers[index] for index in kept])
    rest.training = layers.training
    owner, _, name = parts.layers_path.rpartition(".")
    renumber_layers(layers, rest)
    setattr(parts.model.get_submodule(owner), name, rest)
    for config, fields in zip(found, before, strict=True):
        _copy_changes(parts, config, fields)


def _check_caches(layers: torch.nn.ModuleList) -> None:
    for index, layer in enumerate(layers):
        for path, module in layer.named_modules():
            if getattr(module, "kv_shared_layer_index", None) is not None or getattr(
                module, "is_kv_shared_layer", False
            ):
                raise PrunebenchError(
                    f"layer {index}, {path}: it reads the keys and values of another layer,"
                    " so no layer can be removed",
                    hint="prune weights instead",
                )


def text_configs(parts: Anatomy) -> list[Any]:
    """The text configs that the model and its layers read, each once; usually there is one."""
    found: dict[int, Any] = {}
    owner = parts.model.get_submodule(parts.layers_path.rpartition(".")[0])
    # Not all modules of the decoder: some hold a vision tower, which has layers of its own.
    for module in (parts.model, parts.decoder, owner, *parts.layers.modules()):
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "get_text_config"):
            text = config.get_text_config(decoder=True)
            found[id(text)] = text
    return list(found.values())


def _copy_changes(parts: Anatomy, config: Any, before: dict[str, Any]) -> None:
    """Change what modules around the layers remember of the config, such as a list of layers."""
    for module in (parts.decoder, parts.model.get_submodule(parts.layers_path.rpartition(".")[0])):
        for name, value in vars(module).items():
            if name in before and value == before[name] and value != getattr(config, name):
                setattr(module, name, getattr(config, name))


def _dense_differences(parts: Anatomy) -> tuple[list[set[str]] | None, bool]:
    """`_differences` of all layers, and whether a model without numbers runs.

    None if none can be built, because of a width that the config cannot hold: then nothing can be
    compared.
    """
    for runs in (True, False):
        with contextlib.suppress(Exception):
            return _differences(parts, range(len(parts.layers)), runs=runs), runs
    return None, False


def _check_built(
    parts: Anatomy, kept: Sequence[int], was: list[set[str]] | None, *, runs: bool
) -> None:
    """Raise PrunebenchError unless the shortened config describes the layers that remain."""
    if was is None:
        return
    name = type(parts.model).__name__
    hint = "remove other layers, or prune the weights"
    try:
        now = _differences(parts, kept, runs=runs)
        assert now is not None, "it has another number of layers"
    except Exception as error:
        raise PrunebenchError(
            f"the config of {name} cannot describe the {len(kept)} layers that would remain"
            f" ({first_line(error)})",
            hint=hint,
        ) from error
    # Parameters outside the layers may have a part for each of them (Gemma 4's embeddings).
    *now, rest = now
    if others := sorted(rest - was[-1]):
        raise PrunebenchError(
            f"{others[0]} for {len(kept)} layers, so no layer of {name} can be removed alone",
            hint=hint,
        )
    for index, differences in zip(kept, now, strict=True):
        if others := sorted(differences - was[index]):
            raise PrunebenchError(
                f"layer {index} of {name} would be another one after loading: {others[0]}",
                hint=hint,
            )


def _differences(parts: Anatomy, kept: Sequence[int], *, runs: bool) -> list[set[str]] | None:
    """How these layers, and last the rest, differ from a model that the config describes.

    ``runs``: whether that model must run, too. None if it has another number of layers. Raises what
    building or running such a model raises.
    """
    # Meta: a model of any size is built in a fraction of a second and takes no memory.
    with torch.device("meta"):
        built = type(parts.model)(copy.deepcopy(parts.model.config))
    # With a cache: some hybrid stacks run only if an attention is left that counts its tokens.
    if runs:
        run_on_meta(built, find_layers(built).decoder)
    fresh = built.get_submodule(find_layers(built).layers)
    if len(fresh) != len(kept):
        return None
    differences = [
        set(_told(parts.layers[index])) ^ set(_told(layer))
        for index, layer in zip(kept, fresh, strict=True)
    ]
    rest = _shapes(built, parts.layers_path) - _shapes(parts.model, parts.layers_path)
    return [*differences, rest]


def _shapes(model: Any, layers: str) -> set[str]:
    """What the parameters outside the layers are; some have a part for every layer (Gemma 4)."""
    return {
        f"{name} has the shape {list(tensor.shape)}"
        for name, tensor in model.named_parameters()
        if not name.startswith(f"{layers}.")
    }


def _told(layer: torch.nn.Module) -> Iterator[str]:
    """Everything that says what a layer is, apart from its weights."""
    for path, module in layer.named_modules():
        yield f"{path or 'the layer'} is a {type(module).__name__}"
        for name, tensor in module.named_parameters(recurse=False):
            yield f"{path}.{name} has the shape {list(tensor.shape)}"
        for name, value in vars(module).items():
            plain = value is None or isinstance(value, bool | int | float | str)
            if plain and name not in _UNTOLD and not _INDEX.match(name):
                yield f"{path}.{name} is {value!r}"


def renumber_layers(before: torch.nn.ModuleList, after: torch.nn.ModuleList) -> None:
    """Give modules the number of their new place: an attention finds its KV cache by it."""
    found: dict[tuple[str, str], dict[int, int]] = {}
    for index, layer in enumerate(before):
        for path, module in layer.named_modules():
            for name, value in vars(module).items():
                if _INDEX.match(name) and type(value) is int:
                    found.setdefault((path, name), {})[index] = value
    for (path, name), numbers in found.items():
        step, start = _line(numbers)
        for index, layer in enumerate(after):
            module = _submodule(layer, path)
            if type(getattr(module, name, None)) is int:
                setattr(module, name, step * index + start)


def _line(numbers: dict[int, int]) -> tuple[int, int]:
    """(step, start) of numbers that grow evenly with the layer: LongCat's layers count for two."""
    (first, low), *others = numbers.items()
    if not others:
        return 1, 0
    last, high = others[-1]
    step = (high - low) // (last - first)
    return step, low - step * first


def _submodule(layer: torch.nn.Module, path: str) -> torch.nn.Module | None:
    try:
        return layer.get_submodule(path)
    except AttributeError:
        return None
