"""A Llama with two layers, random weights and a byte tokenizer, generated when needed.

It shows that a suite runs. It knows nothing: its perplexity is about the size of its vocabulary,
with or without pruning. Every byte of its files is written here, because they are pinned by a hash
and the next version of a library could write them differently.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from prunebench import GeneratedAsset, ModelAsset, hookimpl

SHA256 = "11fcf204ce54dd4b77045224ed1184152313bb131211466037a8ed6a4f1d1960"
HIDDEN, HEADS, KV_HEADS, MLP, LAYERS, POSITIONS = 64, 4, 2, 128, 2, 512
BOS, EOS, VOCABULARY = 256, 257, 258
_SPECIAL = {BOS: "<s>", EOS: "</s>"}
_STEP = 2.0**-18  # scales 16 random bits to +-0.125

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "head_dim": HIDDEN // HEADS,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "intermediate_size": MLP,
    "max_position_embeddings": POSITIONS,
    "model_type": "llama",
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": KV_HEADS,
    "pad_token_id": EOS,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "vocab_size": VOCABULARY,
}


def shapes() -> dict[str, tuple[int, ...]]:
    """The shape of every weight by name, in the order of the file."""
    keys = HIDDEN // HEADS * KV_HEADS
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        inside: dict[str, tuple[int, ...]] = {
            "input_layernorm": (HIDDEN,),
            "self_attn.q_proj": (HIDDEN, HIDDEN),
            "self_attn.k_proj": (keys, HIDDEN),
            "self_attn.v_proj": (keys, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HIDDEN),
            "post_attention_layernorm": (HIDDEN,),
            "mlp.gate_proj": (MLP, HIDDEN),
            "mlp.up_proj": (MLP, HIDDEN),
            "mlp.down_proj": (HIDDEN, MLP),
        }
        found |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in inside.items()}
    return {**found, "model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


def write(folder: Path) -> None:
    """Write config, weights and tokenizer into ``folder``: the same bytes on every machine."""
    _json(folder / "config.json", CONFIG)
    _json(folder / "tokenizer.json", _tokenizer())
    names = {"bos_token": _SPECIAL[BOS], "eos_token": _SPECIAL[EOS], "pad_token": _SPECIAL[EOS]}
    settings = {"model_max_length": POSITIONS, "tokenizer_class": "PreTrainedTokenizerFast"}
    _json(folder / "tokenizer_config.json", names | settings)
    (folder / "model.safetensors").write_bytes(_weights())


def _weights() -> bytes:
    """A safetensors file: the header's length in 8 bytes, the header in JSON, the tensors."""
    import numpy as np

    noise = random.Random(0)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts, end = [], 0
    for name, shape in shapes().items():
        draws = np.frombuffer(noise.randbytes(2 * int(np.prod(shape))), dtype="<i2").astype(
            "<f4"
        ) * np.float32(_STEP)
        values = draws + np.float32(1) if len(shape) == 1 else draws  # norms are around 1
        parts.append(values.astype("<f4").tobytes())
        start, end = end, end + len(parts[-1])
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def _tokenizer() -> dict[str, Any]:
    """One token for each byte, in the notation of GPT-2's tokenizer.

    Printable bytes are written as themselves, the others as characters from 256 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    signs = {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + index) for index, byte in enumerate(others)
    }
    bytewise = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    special = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": text, **special} for number, text in _SPECIAL.items()
        ],
        "normalizer": None,
        "pre_tokenizer": bytewise,
        "post_processor": None,
        "decoder": bytewise,
        "model": {"type": "BPE", "vocab": {signs[byte]: byte for byte in range(256)}, "merges": []},
    }


def _json(path: Path, value: Any) -> None:
    path.write_bytes((json.dumps(value, indent=1) + "\n").encode())


@hookimpl
def prunebench_register_model_source() -> ModelAsset:
    return ModelAsset(
        name="tiny-llama",
        asset=GeneratedAsset(location=f"{__name__}:write", sha256=SHA256),
        parameters=107_072,
        summary="random weights, 2 layers, 4 query and 2 key-value heads, a byte tokenizer;"
        " generated when needed",
        reference="https://github.com/huggingface/transformers (the Llama architecture)",
        licence="Apache-2.0",
    )
