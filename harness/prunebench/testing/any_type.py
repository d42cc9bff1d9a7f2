"""A small random model of every causal-LM type that transformers has.

Each config starts as the type's default one and is made small by rules over names of fields: most
types need nothing else. ``CORRECTIONS`` has the rest. Nothing is downloaded.
"""

from __future__ import annotations

import re
import warnings
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

TYPES: tuple[str, ...] = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
VOCABULARY = 320
HIDDEN = 64
LAYERS = 4
HEADS = 4

_SIZES: dict[str, Any] = {
    # the vocabulary and the residual stream
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    "n_vocab": VOCABULARY,
    "hidden_size": HIDDEN,
    "hidden_dim": HIDDEN,
    "d_model": HIDDEN,
    "n_embd": HIDDEN,
    "embedding_size": HIDDEN,
    "word_embed_proj_dim": HIDDEN,
    # depth
    "num_hidden_layers": LAYERS,
    "num_layers": LAYERS,
    "n_layer": LAYERS,
    "n_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_layers": LAYERS,
    # heads: two query heads read one key head
    "num_attention_heads": HEADS,
    "num_heads": HEADS,
    "n_head": HEADS,
    "n_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "num_kv_heads": 2,
    "multi_query_group_num": 2,
    "head_dim": 16,
    "global_head_dim": 16,
    "attention_head_dim": 16,
    # MLPs: no multiple of the hidden size, so that a swap of the two shows
    "intermediate_size": 96,
    "ffn_dim": 96,
    "ffn_hidden_size": 96,
    "d_ff": 96,
    "n_inner": 96,
    "decoder_ffn_dim": 96,
    "encoder_ffn_dim": 96,
    # experts, smaller than a dense MLP
    "moe_intermediate_size": 32,
    "expert_ffn_hidden_size": 32,
    "shared_expert_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32,
    "shared_intermediate_size": 32,
    "intermediate_size_mlp": 96,
    # half of the experts see a token
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "experts_per_token": 2,
    "top_k_experts": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "n_group": 1,
    "num_expert_group": 1,
    "topk_group": 1,
    # latent attention
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "qk_head_dim": 16,
    "v_head_dim": 16,
    # positions, more than any test has tokens
    "max_position_embeddings": 128,
    "n_positions": 128,
    "n_ctx": 128,
    "max_seq_len": 128,
    # linear attentions and state spaces
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "mamba_num_heads": 8,
    "mamba_n_heads": 8,
    "mamba_head_dim": 16,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_dt_rank": 4,
    "mamba_chunk_size": 8,
    "chunk_size": 8,
    "state_size": 8,
    "ssm_state_size": 8,
    "time_step_rank": 4,
    # longer than the windows of the tests: those that cut it off say so themselves
    "sliding_window": 32,
    "rotary_dim": 8,
    "lru_width": HIDDEN,
    # what single types call their sizes
    "adapter_in_dim": HIDDEN,
    "adapter_input_size": HIDDEN,
    "adapter_out_dim": HIDDEN,
    "attention_window_size": 32,
    "first_k_dense_replace": 1,
    # indexers of sparse attentions
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 16,
    "linear_head_dim": 16,
    "linear_num_heads": 4,
    "attention_hidden_size": HIDDEN,
    "swa_num_attention_heads": HEADS,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 16,
    "hidden_size_per_layer_input": 16,
    "kv_channels": 16,
    "dim_head": 16,
    "dim_ff": 96,
    "shared_experts_intermediate_size": 32,
    "dense_intermediate_size": 96,
    "embedding_dim": HIDDEN,
    "num_blocks": LAYERS,
    "input_embedding_size": HIDDEN,
    "num_decoder_layers": LAYERS,
    "num_encoder_layers": 2,
    "num_decoder_attention_heads": HEADS,
    "num_encoder_attention_heads": HEADS,
    "attention_heads": HEADS,
    "emb_dim": HIDDEN,
    "d_head": 16,
    "d_inner": 96,
    "d_kv": 16,
    "ple_embed_dim": 32,
    "ngram_vocab_size_base": 50,
    "split_ngram_parts": 2,
    "moe_layer_end_index": LAYERS - 1,
    "attention_chunk_size": 32,
    "max_window_layers": 2,
    "sliding_window_pattern": 2,
    "_sliding_window_pattern": 2,
    "global_attn_every_n_layers": 2,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
}
_ROPES = {
    kind: {"rope_type": "default", "rope_theta": 10000.0}
    for kind in ("full_attention", "sliding_attention")
}
_PER_LAYER = re.compile(
    r"layer_types|layers_block_type|layer_rope_theta|indexer_types|intermediate_size|no_rope_layers|heads_per_layer|activation_sparsity"
)
"""Lists with an entry for each layer: the small ones have every kind of entry of the default."""

_INDEXER = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 64,
    "indexer_compress_ratio": 4,
}
_HALF = ["mamba", "attention"] * (LAYERS // 2)
CORRECTIONS: dict[str, dict[str, Any]] = {
    "axk1": {"n_group": 1, "topk_group": 1},
    "bamba": {"attn_layer_indices": [1, 3]},
    "blt": {"encoder_hash_byte_group_vocab": 50},
    "cohere_compass_text": {"rope_parameters": _ROPES},
    "ctrl": {"dff": 96},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "deepseek_v4": {"o_lora_rank": 8, "o_groups": 2, "hc_mult": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note": {"text.per_layer_config": {}, "text.head_dim": 16},
    "dots3_note_text": {"per_layer_config": {}, "head_dim": 16},
    "falcon_h1": {"mamba_d_ssm": 128},
    "gemma3n_text": {
        "num_kv_shared_layers": 2,
        "intermediate_size": [96] * LAYERS,
        "activation_sparsity_pattern": [0.0] * LAYERS,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 32},
    "granitemoehybrid": {"layer_types": _HALF},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16, "num_experts": 4, "moe_topk": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "longcat_flash": {"zero_expert_num": 2},
    "mamba2": {"num_heads": 8},
    "ministral": {"head_dim": 16},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp": {f"text.{name}": value for name, value in _INDEXER.items()},
    "qwen4_exp_text": _INDEXER,
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "lsh"] * (LAYERS // 2),
        "axial_pos_embds": False,  # they train on windows of one length only
    },
    "roc_bert": {
        "pronunciation_vocab_size": 40,
        "pronunciation_embed_dim": 16,
        "shape_vocab_size": 40,
        "shape_embed_dim": 16,
    },
    "xlstm": {"qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"attention_head_dim": 32, "attention_hidden_size": 128},
    "zamba2": {"attention_head_dim": 32, "attention_hidden_size": 128},
    "zaya": {"num_experts_per_tok": 1},
}
"""What a type needs besides the rules; 'text.' reaches into the decoder's own config."""


def tiny_config(model_type: str, **overrides: Any) -> PretrainedConfig:
    """The type's default config, small. ``overrides`` are fields of the decoder's config."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind: type[PretrainedConfig] = CONFIG_MAPPING[model_type]
        return _built(kind, CORRECTIONS.get(model_type, {}) | overrides)


def tiny_model(model_type: str, seed: int = 0, **overrides: Any) -> Any:
    """A causal LM of this type in evaluation mode, with random weights, float32."""
    config = tiny_config(model_type, **overrides)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        randomise(model)
    return model.requires_grad_(requires_grad=False)


def randomise(model: torch.nn.Module) -> None:
    """Give every matrix, norm and bias random numbers: code that forgets one then shows it."""
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            continue
        if parameter.dim() >= 2:
            torch.nn.init.normal_(parameter, 0.0, 0.08)
        elif name.endswith(("weight", "bias")):
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            torch.nn.init.normal_(parameter, centre, 0.1)


def _built(kind: type[PretrainedConfig], corrections: dict[str, Any]) -> PretrainedConfig:
    default = kind()
    fields = {**_small(default), **corrections}
    inner = {name[5:]: value for name, value in fields.items() if name.startswith("text.")}
    fields = {name: value for name, value in fields.items() if not name.startswith("text.")}
    for name, value in vars(default).items():
        if isinstance(value, PretrainedConfig) and name not in corrections:
            fields[name] = _built(type(value), inner if "text" in name else {})
    return kind(**fields)


def _small(default: PretrainedConfig) -> dict[str, Any]:
    found: dict[str, Any] = {}
    # Only fields that the type has: what is not in its config stays out of it.
    for name, value in vars(default).items():
        if name.endswith("_token_id") and name != "image_token_id":
            if isinstance(value, int) and not 0 <= value < VOCABULARY:
                found[name] = {"bos_token_id": 0, "eos_token_id": 1}.get(name, 2)
            elif isinstance(value, list):
                found[name] = [1, 3]
        elif name in _SIZES and isinstance(value, int) and not isinstance(value, bool):
            found[name] = _SIZES[name]
        elif _PER_LAYER.search(name) and isinstance(value, list | tuple) and value:
            kinds = list(dict.fromkeys(value))
            found[name] = [kinds[index % len(kinds)] for index in range(LAYERS)]
    if getattr(default, "is_decoder", None) is False:
        found["is_decoder"] = True
    if isinstance(getattr(default, "qk_rope_head_dim", None), int):
        # Multi-head latent attention: every head has its key, and `head_dim` is the rotated part.
        if "num_key_value_heads" in found:
            found["num_key_value_heads"] = HEADS
        if "head_dim" in found:
            found["head_dim"] = _SIZES["qk_rope_head_dim"]
    return found
