"""Layers that are built alike: the proof needs two of each kind, not all of a deep model."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

from prunebench.model.layers import decoder_layers
from prunebench.model.shorten import shorten

_LARGEST = 1 << 26
"""Parameters of a model that is built for a proof; a quarter of a gigabyte."""


class Alike(NamedTuple):
    """Layers that are built alike."""

    meant: list[int]
    """Their numbers in the model that is meant, ascending."""
    built: list[int]
    """The numbers of those that the smaller model has, ascending."""


def few_layers(kind: type, config: Any) -> tuple[Any, list[Alike]]:
    """A model of class ``kind`` with the first and the last layer of every kind of ``config``.

    With all layers if no config describes only these. Raises ValueError if it would be too large
    to be built by the way, and what building it raises.
    """
    # Without weights, but as deep as the config says: only a built layer shows which kind it is.
    signatures = [signature(layer) for layer in decoder_layers(_described(kind, config))]
    groups = _groups(signatures)
    # The last one as well: what holds in the first layer alone shows there.
    kept = sorted({index for each in groups for index in (each[0], each[-1])})
    short = _shorter(kind, config, kept, signatures) if len(kept) < len(signatures) else None
    if short is not None:
        new = {index: position for position, index in enumerate(kept)}
        return _built(kind, short), [
            Alike(each, [new[index] for index in each if index in new]) for each in groups
        ]
    return _built(kind, config), [Alike(each, each) for each in groups]


def _built(kind: type, config: Any) -> Any:
    size = sum(parameter.numel() for parameter in _described(kind, config).parameters())
    if size > _LARGEST:
        message = f"it still has {size:,} parameters"
        raise ValueError(message)
    return kind(config)


def _described(kind: type, config: Any) -> Any:
    """A model without weights, or with them if its code computes with numbers."""
    try:
        with torch.device("meta"):
            return kind(config)
    except Exception:
        return kind(config)


def _groups(signatures: Sequence[str]) -> list[list[int]]:
    alike: dict[str, list[int]] = {}
    for index, said in enumerate(signatures):
        alike.setdefault(said, []).append(index)
    return list(alike.values())


def _shorter(kind: type, config: Any, kept: Sequence[int], signatures: Sequence[str]) -> Any:
    """A config for these layers and no others; None if it cannot say so."""
    short = copy.deepcopy(config)
    try:
        shorten(short.get_text_config(decoder=True), kept, len(signatures))
        short = type(short).from_dict(short.to_dict())
        found = [signature(layer) for layer in decoder_layers(_described(kind, short))]
    except Exception:
        return None
    return short if found == [signatures[index] for index in kept] else None


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
