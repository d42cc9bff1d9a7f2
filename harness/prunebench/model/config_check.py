"""Check a config without transformers: what cannot be a model is refused when a suite is planned."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from prunebench.errors import PrunebenchError
from prunebench.model.safetensors_header import EMBEDDINGS, StoredTensor, is_float
from prunebench.model.weight_files import PRUNING_FILE

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


class _Linears(NamedTuple):
    """Linears of a family that has one width for all layers, and the config's name for it."""

    width: str
    into_mlp: str
    out_of_attention: str


_LLAMA = _Linears("intermediate_size", ".mlp.gate_proj.weight", ".self_attn.o_proj.weight")
_LINEARS = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma"), _LLAMA),
    "opt": _Linears("ffn_dim", ".fc1.weight", ".self_attn.out_proj.weight"),
    "gpt_neox": _Linears(
        "intermediate_size", ".mlp.dense_h_to_4h.weight", ".attention.dense.weight"
    ),
    "phi": _Linears("intermediate_size", ".mlp.fc1.weight", ".self_attn.dense.weight"),
}
"""Types whose widths are compared as well; of others only layers, vocabulary and hidden size."""
_NO_PADDING = {"gpt_neox", "gpt2", "gpt_neo", "gptj", "codegen", "bloom", "falcon", "mpt"}
"""Types whose embeddings have no padding id, so that any `pad_token_id` will do."""
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
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
    # A pruned model may be narrower than its config says.
    if not (folder / PRUNING_FILE).exists():
        _check_shapes(folder, config, tensors)
    pad, size = config.get("pad_token_id"), config.get("vocab_size")
    pads = config.get("model_type") not in _NO_PADDING
    # torch counts a negative id from the end.
    if pads and type(pad) is int and type(size) is int and not -size <= pad < size:
        raise PrunebenchError(
            f"{file}: pad_token_id is {pad}, but the vocabulary has ids 0 to {size - 1}",
            hint="set it to null or to an id of the tokenizer; padding is not used here",
        )


def _check_shapes(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, StoredTensor],
) -> None:
    """Compare sizes in the config with the weights.

    transformers would make what the config says, up to all memory, before it finds a difference.
    """
    layers = {int(match[1]) for name in tensors if (match := _LAYER.search(name))}
    found: dict[str, int | None] = {
        "num_hidden_layers": max(layers, default=-1) + 1,
        "vocab_size": _size(tensors, EMBEDDINGS, 0),
        "hidden_size": _size(tensors, EMBEDDINGS, 1),
    }
    heads, width = config.get("num_attention_heads"), config.get("head_dim")
    if (known := _LINEARS.get(str(config.get("model_type")))) is not None:
        found[known.width] = _size(tensors, (known.into_mlp,), 0)
        if type(heads) is int and type(width) is int:
            config = {**config, "num_attention_heads x head_dim": heads * width}
            found["num_attention_heads x head_dim"] = _size(tensors, (known.out_of_attention,), 1)
    if "word_embed_proj_dim" in config:  # OPT's embeddings may be narrower than its layers
        del found["hidden_size"]
    for key, stored in found.items():
        said = config.get(key)
        # Fewer layers than there are can be loaded; what is left over is flagged then.
        fits = said == stored or (key == "num_hidden_layers" and (said or 0) < (stored or 0))
        if stored and type(said) is int and not fits:
            raise PrunebenchError(
                f"{folder / 'config.json'}: {key} is {said}, but the weights have {stored}",
                hint="take config and weights from the same checkpoint",
            )


def _size(
    tensors: Mapping[str, StoredTensor], endings: tuple[str, ...], dimension: int
) -> int | None:
    """A size of the first matrix whose name has one of these endings."""
    shapes = (tensor.shape for name, tensor in tensors.items() if name.endswith(endings))
    return next((shape[dimension] for shape in shapes if len(shape) == 2), None)


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
    key = _quantised(config)
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


def check_plain(config: Mapping[str, Any], source: object) -> None:
    """Raise PrunebenchError if a config says that its weights are quantised."""
    if (key := _quantised(config)) is not None:
        raise PrunebenchError(
            f"{source} is quantised ({_method(config[key])}): only plain weights can be pruned",
            hint=_ORIGINAL,
        )


def _quantised(config: Mapping[str, Any]) -> str | None:
    return next((key for key in _QUANTISED if config.get(key)), None)


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
