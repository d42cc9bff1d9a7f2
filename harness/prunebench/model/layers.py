"""Find the decoder layers of a causal LM, whatever its family calls them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from prunebench.errors import PrunebenchError


class LayersPath(NamedTuple):
    """Where a model keeps its decoder; all paths start at the model."""

    decoder: str
    """The text decoder: ids in, hidden states out."""
    layers: str
    """The list of its layers."""
    norm: str | None
    """The norm after the last layer; None if there is none (post-norm OPT-350m)."""


def find_layers(model: Any) -> LayersPath:
    """The list of decoder layers in ``model``: a text decoder inside a larger model, too.

    Layers are known by the classes that transformers never splits over devices, else the list is
    the one with as many entries as the config has layers. Raises PrunebenchError that names the
    modules if there is no such list or if there are several.
    """
    inside = _decoder(model)
    found = list(_lists(model, inside, set(getattr(model, "_no_split_modules", None) or ())))
    depth = _depth(model)
    # Several lists of known classes: a vision tower, or a stack beside the decoder. The config's
    # number of layers may tell them apart.
    if len(found) != 1:
        by_length = [
            path for path in _lists(model, inside, None) if len(model.get_submodule(path)) == depth
        ]
        both = [path for path in found if path in by_length]
        found = both or by_length or found
    name = type(model).__name__
    if not found:
        raise PrunebenchError(
            f"{name} has no list of {depth or 'its'} decoder layers, so nobody can tell them apart",
            hint="name a model whose layers are in one torch.nn.ModuleList",
        )
    if len(found) > 1:
        raise PrunebenchError(
            f"{name} has several lists of layers: {', '.join(found)}",
            hint="only models with a single stack of decoder layers can be pruned",
        )
    return LayersPath(_around(model, inside, found[0]), found[0], _norm(model, found[0]))


def decoder_layers(model: Any) -> torch.nn.ModuleList:
    """The list of decoder layers. Raises PrunebenchError as `find_layers` does."""
    return model.get_submodule(find_layers(model).layers)  # type: ignore[no-any-return]


def _decoder(model: Any) -> str:
    """Path of what transformers calls the decoder; '' if that is the model or has no layers."""
    try:
        decoder = model.get_decoder()
    except (AttributeError, NotImplementedError):
        return ""
    if not any(isinstance(each, torch.nn.ModuleList) for each in decoder.modules()):
        return ""  # ModernBERT calls its output embedding the decoder
    return next((path for path, each in model.named_modules() if each is decoder), "")


def _depth(model: Any) -> int | None:
    """How many decoder layers the config says there are."""
    config = model.config.get_text_config(decoder=True)
    for name in (
        "num_decoder_layers",
        "num_hidden_layers",
        "num_layers",
        "n_layer",
        "decoder_layers",
    ):
        if isinstance(depth := getattr(config, name, None), int):
            return depth
    return None


def _lists(model: Any, inside: str, classes: set[str] | None) -> Iterator[str]:
    """Paths of the outermost lists below ``inside`` whose entries are all of these classes."""
    outer: list[str] = []
    for name, module in model.get_submodule(inside).named_modules(prefix=inside):
        if not isinstance(module, torch.nn.ModuleList) or not len(module):
            continue
        if classes is not None and not {type(each).__name__ for each in module} <= classes:
            continue
        if not any(name.startswith(f"{each}.") for each in outer):
            outer.append(name)
            yield name


def _around(model: Any, inside: str, layers: str) -> str:
    """The decoder: ``inside``, or the outermost part of the model that has layers and embeddings."""
    if inside:
        return inside
    embeddings = model.get_input_embeddings()
    steps = layers.split(".")
    for depth in range(1, len(steps)):
        path = ".".join(steps[:depth])
        if any(each is embeddings for each in model.get_submodule(path).modules()):
            return path
    return inside


def _norm(model: Any, layers: str) -> str | None:
    """The norm beside the list of layers; one of the embeddings is not meant."""
    owner = layers.rpartition(".")[0]
    names = [
        name
        for name, child in model.get_submodule(owner).named_children()
        if "norm" in type(child).__name__.lower() and "emb" not in name
    ]
    return f"{owner}.{names[-1]}".lstrip(".") if names else None
