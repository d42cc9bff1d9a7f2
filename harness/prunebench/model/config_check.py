"""Check a config without transformers: what cannot be a model is refused when a suite is planned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunebench.errors import PrunebenchError
from prunebench.model.families import FAMILIES
from prunebench.model.safetensors_header import StoredTensor, is_float

_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
)
_QUANTISED = ("quantization_config", "compression_config")
_ORIGINAL = "name the checkpoint that it was made from"


def check_config(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]
) -> None:
    """Raise PrunebenchError if the weights are quantised, or a size or an id makes no sense."""
    file = folder / "config.json"
    _check_quantisation(folder, config, tensors)
    for key in _SIZES:
        value = config.get(key)
        # Some configs have a list with one number for each layer.
        if isinstance(value, str | float | int) and (type(value) is not int or value < 1):
            raise PrunebenchError(
                f"{file}: {key} is {value!r}, not a whole number above 0",
                hint="correct it, or download the file again",
            )
    pad, size = config.get("pad_token_id"), config.get("vocab_size")
    family = FAMILIES.get(str(config.get("model_type")))
    pads = family is None or family.pads
    # torch counts a negative id from the end.
    if pads and type(pad) is int and type(size) is int and not -size <= pad < size:
        raise PrunebenchError(
            f"{file}: pad_token_id is {pad}, but the vocabulary has ids 0 to {size - 1}",
            hint="set it to null or to an id of the tokenizer; padding is not used here",
        )


def _check_quantisation(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]
) -> None:
    packed = next(
        (
            f"{tensor.path}: {name} is stored as {tensor.dtype}"
            for name, tensor in tensors.items()
            if name.endswith("weight") and not is_float(tensor)
        ),
        None,
    )
    key = next((key for key in _QUANTISED if config.get(key)), None)
    plain = "only plain weights can be pruned and measured"
    if key is None and packed:
        raise PrunebenchError(f"{packed}: {plain}", hint=_ORIGINAL)
    if key is None:
        return
    if packed or any(not is_float(tensor) for tensor in tensors.values()):
        raise PrunebenchError(
            f"{folder} is quantised ({_method(config[key])}): {plain}", hint=_ORIGINAL
        )
    raise PrunebenchError(
        f"{folder / 'config.json'} asks to quantise while loading ({_method(config[key])}): {plain}",
        hint=f"remove `{key}` from it: the stored weights are plain",
    )


def _method(settings: Any) -> str:
    """What a config says about its quantisation: 'gptq, 4 bits'."""
    if not isinstance(settings, Mapping):
        return str(settings)
    bits = settings.get("bits") or settings.get("w_bit")
    for width in (4, 8):
        if settings.get(f"load_in_{width}bit"):
            bits = width
    usual = "bitsandbytes" if any("load_in" in str(key) for key in settings) else "unknown method"
    method = str(settings.get("quant_method") or usual)
    return f"{method}, {bits} bits" if bits else method
