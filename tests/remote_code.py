"""Folders with models whose code lies beside the weights, fused as Baichuan and ChatGLM do it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from tiny import tiny_tokenizer

CODE = '''
import torch
from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast


class HouseConfig(PretrainedConfig):
    model_type = "house"

    def __init__(self, vocab_size=320, hidden_size=64, ffn_hidden_size=40, num_hidden_layers=3,
                 num_attention_heads=4, multi_query_group_num=2, style="baichuan", **kwargs):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.ffn_hidden_size = ffn_hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.multi_query_group_num = multi_query_group_num
        self.style = style
        super().__init__(**kwargs)


def attend(query, key, value, cache, index):
    """[batch, heads, tokens, channels] each; keys and values may have fewer heads."""
    before = 0 if cache is None else cache.get_seq_length(index)
    if cache is not None:
        key, value = cache.update(key, value, index)
    times = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
    length, total = query.shape[2], key.shape[2]
    mask = torch.ones(length, total, dtype=torch.bool, device=query.device).tril(before)
    out = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return out.transpose(1, 2)


class BaichuanAttention(nn.Module):
    """Queries, keys and values one after the other in one matrix."""

    def __init__(self, config, layer_idx):
        super().__init__()
        self.layer_idx = layer_idx
        self.hidden_size = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.W_pack = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden_states, past_key_values=None):
        batch, tokens, _ = hidden_states.shape
        packed = self.W_pack(hidden_states).unflatten(-1, (3, self.hidden_size))
        query, key, value = (
            packed[..., part, :].view(batch, tokens, self.num_heads, self.head_dim).transpose(1, 2)
            for part in range(3)
        )
        out = attend(query, key, value, past_key_values, self.layer_idx)
        return self.o_proj(out.reshape(batch, tokens, self.hidden_size)), None


class SelfAttention(nn.Module):
    """ChatGLM: groups of queries share keys and values, all in one matrix."""

    def __init__(self, config, layer_idx):
        super().__init__()
        self.layer_idx = layer_idx
        self.hidden_size_per_attention_head = config.hidden_size // config.num_attention_heads
        self.num_attention_heads_per_partition = config.num_attention_heads
        self.num_multi_query_groups_per_partition = config.multi_query_group_num
        rows = config.hidden_size + 2 * (
            config.multi_query_group_num * self.hidden_size_per_attention_head
        )
        self.query_key_value = nn.Linear(config.hidden_size, rows)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden_states, past_key_values=None):
        size = self.hidden_size_per_attention_head
        counts = [self.num_attention_heads_per_partition] + 2 * [
            self.num_multi_query_groups_per_partition
        ]
        parts = self.query_key_value(hidden_states).split([size * each for each in counts], dim=-1)
        query, key, value = (part.unflatten(-1, (-1, size)).transpose(1, 2) for part in parts)
        out = attend(query, key, value, past_key_values, self.layer_idx)
        return self.dense(out.flatten(2)), None


class BaichuanMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.ffn_hidden_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.ffn_hidden_size, bias=False)
        self.down_proj = nn.Linear(config.ffn_hidden_size, config.hidden_size, bias=False)

    def forward(self, states):
        return self.down_proj(nn.functional.silu(self.gate_proj(states)) * self.up_proj(states))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, 2 * config.ffn_hidden_size, bias=False)
        self.dense_4h_to_h = nn.Linear(config.ffn_hidden_size, config.hidden_size, bias=False)

    def forward(self, states):
        gate, up = self.dense_h_to_4h(states).chunk(2, dim=-1)
        return self.dense_4h_to_h(nn.functional.silu(gate) * up)


class HouseBlock(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        glm = config.style == "chatglm"
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=1e-6)
        self.self_attention = (SelfAttention if glm else BaichuanAttention)(config, layer_idx)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=1e-6)
        self.mlp = (MLP if glm else BaichuanMLP)(config)

    def forward(self, hidden_states, past_key_values=None):
        attended, _ = self.self_attention(
            self.input_layernorm(hidden_states), past_key_values=past_key_values
        )
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class HousePreTrained(PreTrainedModel):
    config_class = HouseConfig
    base_model_prefix = "model"
    _no_split_modules = ["HouseBlock"]


class HouseModel(HousePreTrained):
    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            HouseBlock(config, index) for index in range(config.num_hidden_layers)
        )
        self.norm = nn.RMSNorm(config.hidden_size, eps=1e-6)
        self.post_init()

    def forward(self, input_ids, past_key_values=None, use_cache=None, **kwargs):
        states = self.embed_tokens(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        for layer in self.layers:
            states = layer(states, past_key_values=past_key_values)
        return CausalLMOutputWithPast(logits=self.norm(states), past_key_values=past_key_values)


class HouseForCausalLM(HousePreTrained, GenerationMixin):
    def __init__(self, config):
        super().__init__(config)
        self.model = HouseModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids=None, past_key_values=None, use_cache=None, **kwargs):
        found = self.model(input_ids, past_key_values=past_key_values, use_cache=use_cache)
        found.logits = self.lm_head(found.logits)
        return found
'''


def write_folder(folder: Path, style: str) -> None:
    """A checkpoint in the style of 'baichuan' or 'chatglm', with its code and a tokenizer."""
    folder.mkdir(parents=True)
    (folder / "modeling_house.py").write_text(CODE, encoding="utf-8")
    config = {
        "model_type": "house",
        "style": style,
        "architectures": ["HouseForCausalLM"],
        "auto_map": {
            "AutoConfig": "modeling_house.HouseConfig",
            "AutoModelForCausalLM": "modeling_house.HouseForCausalLM",
        },
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    from transformers import AutoConfig

    loaded = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = AutoModelForCausalLM.from_config(loaded, trust_remote_code=True)
        for parameter in model.parameters():
            parameter.data.normal_(float(parameter.dim() == 1), 0.1)
    from safetensors.torch import save_file

    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    tiny_tokenizer().save_pretrained(folder)
