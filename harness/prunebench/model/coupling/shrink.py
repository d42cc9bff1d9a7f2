"""The config of a small model of the same class: the same parts, fewer and narrower."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator
from typing import Any

_SMALL = 1 << 22
"""A model with fewer parameters than this is small enough as it is."""
_VOCABULARY, _HIDDEN, _HEADS, _KEY_HEADS, _HEAD_DIM = 160, 64, 4, 2, 16
_SIZES: dict[str, int] = {
    r"(n_)?vocab(_size)?(_per_layer_input)?|padded_vocab_size": _VOCABULARY,
    r"hidden_size|hidden_dim|d_model|n_embd|dim|emb_dim|embedding_size": _HIDDEN,
    r"word_embed_proj_dim": _HIDDEN,
    r"lru_width|attention_hidden_size|input_embedding_size|embedding_dim": _HIDDEN,
    r"(global_|attention_|swa_|linear_)?head_dim|kv_channels|dim_head|d_head|d_kv": _HEAD_DIM,
    r"v_head_dim|qk_head_dim|linear_(key|value)_head_dim|mamba_(head_dim|d_head)": _HEAD_DIM,
    r"qk_(nope|rope)_head_dim|rotary_dim": 8,
    r"intermediate_size(_mlp)?|(\w+_)?ffn_dim|(expert_)?ffn_hidden_size": 96,
    r"d_ff|dff|n_inner|dim_ff": 96,
    r"(moe|shared|shared_expert|moe_shared_expert|dense|shared_experts)_intermediate_size": 24,
    r"(num_|n_routed_|num_local_|moe_num_)experts": 4,
    r"num_experts_per_tok(en)?|experts_per_token|top_k_experts|moe_topk|moe_k": 2,
    r"n_group|topk_group|num_expert_group": 1,
    r"kv_lora_rank": 16,
    r"q_lora_rank": 24,
    r"max_position_embeddings|n_positions|n_ctx|max_seq_len|seq_length": 128,
    r"linear_num_key_heads": 2,
    r"linear_num_value_heads": 4,
    r"mamba_(num|n)_heads": 8,
    r"mamba_d_state|(ssm_)?state_size|(mamba_)?chunk_size": 8,
    r"mamba_n_groups": 1,
    r"time_step_rank|mamba_dt_rank": 4,
    r"sliding_window|attention_window_size|attention_chunk_size": 32,
}
_HEAD_COUNT = re.compile(
    r"(num_)?(attention_)?heads|n_heads?|(swa_)?num_attention_heads|(en|de)coder_attention_heads"
)
_KEY_COUNT = re.compile(r"(swa_)?num_key_value_heads|num_kv_heads|n_head_kv|multi_query_group_num")
_TOKEN = re.compile(r".*token(_id|_index)$")


def small_configs(config: Any, parameters: int) -> Iterator[Any]:
    """Copies of ``config`` for small models, the likeliest to work first.

    ``parameters``: of the model that ``config`` describes.
    """
    with contextlib.suppress(Exception):  # as a loader would read it, with defaults filled in
        config = type(config).from_dict(config.to_dict())
    if parameters <= _SMALL:
        yield copy.deepcopy(config)
        return
    yield _shrunk(config, heads=True)
    yield _shrunk(config, heads=False)


def _shrunk(config: Any, *, heads: bool) -> Any:
    """``heads``: whether heads may be fewer and smaller, too; else only what surrounds them."""
    # Only fields that are larger than the small size change, so that what is off stays off.
    found = copy.deepcopy(config)
    values = dict(vars(found))
    query = next((v for k, v in values.items() if _HEAD_COUNT.fullmatch(k) and _is_int(v)), 0)
    for name, value in values.items():
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            setattr(found, name, _shrunk(value, heads=heads))
        elif _is_int(value):
            # Latent attention: `head_dim` may be that of the rotated part of a head.
            rotated = name == "head_dim" and value == values.get("qk_rope_head_dim")
            as_name = "qk_rope_head_dim" if rotated else name
            small = _small(as_name, value, query, heads=heads)
            if small != value:
                setattr(found, name, small)
    return found


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _small(name: str, value: int, query: int, *, heads: bool) -> int:
    # Special tokens must be in the small vocabulary, below those that the proof draws.
    if _TOKEN.fullmatch(name):
        return value % 8
    if heads and _HEAD_COUNT.fullmatch(name):
        return min(value, _HEADS)
    if heads and _KEY_COUNT.fullmatch(name):
        return value if value <= 1 else _HEADS if value == query else _KEY_HEADS
    for pattern, size in _SIZES.items():
        if re.fullmatch(pattern, name):
            if not heads and size in {_HEAD_DIM, _HIDDEN, 8}:
                return value
            return min(value, size)
    return value
