"""Layers that are built alike: the proof needs two of each kind, not all of a deep model."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

from prunebench.model.layers import decoder_layers
from prunebench.model.shorten import shorten


class Alike(NamedTuple):
    """Layers that are built alike."""

    meant: list[int]
    """Their numbers in the model that is meant, ascending."""
    built: list[int]
    """The numbers of those that the smaller model has, ascending."""


def few_layers(kind: type, config: Any) -> tuple[Any, list[Alike]]:
    """A model of class ``kind`` with the first and the last layer of every kind of ``config``.

    With all layers if no config describes only these. Raises what building it raises.
    """
    # Small, but as deep as the config says: only a built layer shows which kind it is.
    whole = kind(config)
    signatures = [signature(layer) for layer in decoder_layers(whole)]
    groups = _groups(signatures)
    # The last one as well: what holds in the first layer alone shows there.
    kept = sorted({index for each in groups for index in (each[0], each[-1])})
    short = _built(kind, config, kept, signatures) if len(kept) < len(signatures) else None
    if short is not None:
        new = {index: position for position, index in enumerate(kept)}
        return short, [
            Alike(each, [new[index] for index in each if index in new]) for each in groups
        ]
    return whole, [Alike(each, each) for each in groups]


def _groups(signatures: Sequence[str]) -> list[list[int]]:
    alike: dict[str, list[int]] = {}
    for index, said in enumerate(signatures):
        alike.setdefault(said, []).append(index)
    return list(alike.values())


def _built(kind: type, config: Any, kept: Sequence[int], signatures: Sequence[str]) -> Any:
    """A model that has these layers and no others; None if its config cannot say so."""
    short = copy.deepcopy(config)
    try:
        shorten(short.get_text_config(decoder=True), kept, len(signatures))
        model = kind(type(short).from_dict(short.to_dict()))
        found = [signature(layer) for layer in decoder_layers(model)]
    except Exception:
        return None
    return model if found == [signatures[index] for index in kept] else None


def signature(layer: torch.nn.Module) -> str:
    """Equal for layers that are built alike."""
    modules = [
        (path, type(module).__name__, sorted(_switches(module)))
        for path, module in layer.named_modules()
    ]
    shapes = [(name, tuple(parameter.shape)) for name, parameter in layer.named_parameters()]
    return repr((modules, shapes))


def _switches(module: torch.nn.Module) -> Iterable[tuple[str, str]]:
    return [
        (name, repr(value))
        for name, value in vars(module).items()
        if isinstance(value, bool | str | int) and name not in {"layer_idx", "layer_id", "training"}
    ]
