"""Let a config describe fewer layers: everything in it that counts them is counted again."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

_NUMBERS = re.compile(r"(indices|idxs|only_layers|cross_attention_layers|^moe_layers)$")
"""Fields of configs that list the numbers of some layers."""
_FIRST = ("max_window_layers", "first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")
"""Fields of configs that say how many of the first layers are of another kind."""


def shorten(config: Any, kept: Sequence[int], depth: int) -> None:
    """Change everything in a config that counts its layers."""
    names = ("num_decoder_layers", "num_hidden_layers", "num_layers", "n_layer", "decoder_layers")
    counted = [name for name in names if getattr(config, name, None) == depth]
    if not counted:
        return
    new = {index: position for position, index in enumerate(kept)}
    changes: dict[str, Any] = {}
    for name, value in vars(config).items():
        if hasattr(value, "per_layer_overrides"):
            overrides = {new[at]: one for at, one in value.per_layer_overrides.items() if at in new}
            changes[name] = dataclasses.replace(value, per_layer_overrides=overrides)
        if not isinstance(value, list | tuple):
            continue
        if _NUMBERS.search(name):
            changes[name] = type(value)(new[index] for index in value if index in new)
        elif name == "attention_types":  # GPT-Neo: [[[kinds], how often]]
            kinds = [kind for each, times in value for _ in range(times) for kind in each]
            changes[name] = [[[kinds[index]], 1] for index in kept]
        elif len(value) == depth:
            changes[name] = type(value)(value[index] for index in kept)
    for name in _FIRST:
        if isinstance(first := getattr(config, name, None), int):
            changes[name] = sum(index < first for index in kept)
    if isinstance(end := getattr(config, "moe_layer_end_index", None), int) and end >= 0:
        changes["moe_layer_end_index"] = sum(index <= end for index in kept) - 1
    for name, value in changes.items():
        setattr(config, name, value)
    # Last: some configs check that their lists are as long as this says.
    for name in counted:
        if name in vars(config) or name == "num_hidden_layers":
            setattr(config, name, len(kept))
