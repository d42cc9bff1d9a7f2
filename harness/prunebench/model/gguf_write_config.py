"""The families that can be written as GGUF, and the keys that tell llama.cpp their numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunebench.errors import PrunebenchError

_LLAMA_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
_FOUR_NORMS = _LLAMA_NAMES | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


@dataclass(frozen=True)
class Family:
    """How llama.cpp computes a family."""

    architecture: str
    activation: str = "silu"
    names: Mapping[str, str] = field(default_factory=lambda: _LLAMA_NAMES)
    """Path of a module in its layer -> name in the file."""
    turned: bool = False
    """Whether rope turns neighbouring channels, so that rows of Q and K are reordered."""
    uneven: bool = False
    """Whether `deci` computes it too, so that layers may differ."""
    full_bias: bool = False
    """Whether the bias of Q must have as many numbers as the residual stream has channels."""
    norm_offset: float = 0.0
    pattern: int = 0
    """Of this number of layers one has full attention, the others a window; 0: no windows."""
    wide_layers: int = 0
    """At this number of layers the scale of attention comes from the width instead of the head."""


_GELU = "gelu_pytorch_tanh"
FAMILIES: Mapping[str, Family] = {
    "llama": Family("llama", turned=True, uneven=True),
    "mistral": Family("llama", turned=True, uneven=True),
    "qwen2": Family("qwen2", uneven=True, full_bias=True),
    "qwen3": Family("qwen3", names=_LLAMA_NAMES | _HEAD_NORMS),
    "gemma": Family("gemma", _GELU, norm_offset=1.0),
    "gemma2": Family("gemma2", _GELU, _FOUR_NORMS, norm_offset=1.0, pattern=2, wide_layers=46),
    "gemma3_text": Family(
        "gemma3", _GELU, _FOUR_NORMS | _HEAD_NORMS, norm_offset=1.0, pattern=6, wide_layers=62
    ),
}
"""transformers' model type -> how llama.cpp computes it."""


def head_size(config: Any) -> int:
    """Channels of one attention head."""
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def read_text_config(folder: Path, config: Mapping[str, Any]) -> Any:
    """Transformers' config of the checkpoint.

    Raises PrunebenchError if llama.cpp would compute something else than it says.
    """
    from transformers import AutoConfig

    kind = str(config.get("model_type"))
    if kind not in FAMILIES:
        raise PrunebenchError(
            f"a {kind} model cannot be written as GGUF here: known are {', '.join(FAMILIES)}",
            hint="convert it with llama.cpp's own convert_hf_to_gguf.py",
        )
    family, found = FAMILIES[kind], AutoConfig.from_pretrained(folder, local_files_only=True)
    for complaint in (
        _wrong_activation(family, found),
        _wrong_rope(found),
        _wrong_windows(family, found),
        _wrong_scale(family, found),
    ):
        if complaint is not None:
            raise PrunebenchError(
                f"llama.cpp would compute another model: {complaint}",
                hint="load the model with prunebench.load_pruned",
            )
    return found


def _wrong_activation(family: Family, config: Any) -> str | None:
    name = getattr(config, "hidden_activation", None) or config.hidden_act
    # Gemma's config says 'gelu' for what its code computes with tanh.
    wanted = {family.activation} | ({"gelu"} if family.architecture == "gemma" else set())
    return None if name in wanted else f"its MLPs have {name} instead of {family.activation}"


def _wrong_rope(config: Any) -> str | None:
    for rope in _ropes(config).values():
        kind = rope.get("rope_type", "default")
        if kind not in {"default", "linear", "llama3"}:
            return f"its positions are scaled by '{kind}'"
        if rope.get("partial_rotary_factor", 1.0) != 1.0:
            return "rope turns only a part of each head"
    return None


def _ropes(config: Any) -> dict[str, Mapping[str, Any]]:
    """Rope's numbers by kind of layer, 'full_attention' for families with one kind."""
    found: Mapping[str, Any] = config.rope_parameters
    if "full_attention" in found:
        return {name: rope for name, rope in found.items() if isinstance(rope, Mapping)}
    return {"full_attention": found}


def _wrong_windows(family: Family, config: Any) -> str | None:
    kinds: Sequence[str] = getattr(config, "layer_types", None) or []
    sliding = [kind == "sliding_attention" for kind in kinds]
    if not family.pattern:
        return "some layers read only a window" if any(sliding) and not all(sliding) else None
    if sliding != [(index + 1) % family.pattern != 0 for index in range(len(sliding))]:
        return f"not every {family.pattern}th layer reads everything, and all others a window"
    return None


def _wrong_scale(family: Family, config: Any) -> str | None:
    asked = getattr(config, "query_pre_attn_scalar", None)
    if asked is None:
        return None
    size: float = config.head_dim
    if config.num_hidden_layers == family.wide_layers:
        size = config.hidden_size / config.num_attention_heads
    if asked == size:
        return None
    return f"it divides attention scores by the root of {asked}, llama.cpp by that of {size}"


def describe(
    writer: Any,
    config: Any,
    layers: Sequence[tuple[int, int, int]],
    hidden: int,
    vocabulary: int,
) -> None:
    """Add the keys of a model to a gguf.GGUFWriter.

    ``layers``: (heads, KV heads, MLP channels) of each. Numbers that are the same in all layers are
    written once.
    """
    import gguf

    family = FAMILIES[config.model_type]
    writer.add_block_count(len(layers))
    writer.add_context_length(_context(family, config))
    writer.add_embedding_length(hidden)
    writer.add_vocab_size(vocabulary)
    heads, kv_heads, channels = (list(numbers) for numbers in zip(*layers, strict=True))
    one_for_all = len(set(layers)) == 1
    writer.add_head_count(heads[0] if one_for_all else heads)
    writer.add_head_count_kv(kv_heads[0] if one_for_all else kv_heads)
    writer.add_feed_forward_length(channels[0] if one_for_all else channels)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    size = head_size(config)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    rope = _ropes(config)["full_attention"]
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if family.pattern:
        writer.add_sliding_window(config.sliding_window)
    if softcap := getattr(config, "attn_logit_softcapping", None):
        writer.add_attn_logit_softcapping(softcap)
    if softcap := getattr(config, "final_logit_softcapping", None):
        writer.add_final_logit_softcapping(softcap)


def _context(family: Family, config: Any) -> int:
    """Tokens that the model may see.

    llama.cpp gives `llama` and `qwen2` no window. In a context as long as the window there is no
    difference.
    """
    window = getattr(config, "sliding_window", None)
    length = int(config.max_position_embeddings)
    return length if family.pattern or not window else min(length, int(window))
