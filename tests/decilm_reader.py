"""A Llama with `block_configs` as SGLang computes it, and as llama.cpp's converter counts it.

Written from the rules of the readers alone, with torch's functions: neither transformers' Llama nor
our own surgery is in it. Sources: python/sglang/srt/models/nemotron_nas.py at 15a024d,
conversion/deci.py at 2bbcf7fc and src/models/deci.cpp at 75dc8f64.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoConfig


def rounded(ffn_mult: float, hidden: int) -> int:
    width = int(2 * ffn_mult * hidden / 3)
    return width if width % 256 == 0 else width + 256 - width % 256


class SGLangReader:
    """A folder as SGLang reads it; fails where SGLang would."""

    def __init__(self, folder: Path) -> None:
        self.config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
        self.weights = load_file(folder / "model.safetensors")
        self.used: set[str] = set()

    def take(self, name: str, *shape: int) -> torch.Tensor:
        self.used.add(name)
        assert tuple(self.weights[name].shape) == shape, (name, shape)
        return self.weights[name]

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """[batch, length, vocabulary]."""
        config, vocabulary = self.config, self.config.vocab_size
        head = self.take("model.embed_tokens.weight", vocabulary, config.hidden_size)
        states, residual = head[ids], None
        for index, block in enumerate(config.block_configs):
            here = f"model.layers.{index}"
            if not block.attention.no_op:
                residual = states if residual is None else states + residual
                states = self.norm(residual, f"{here}.input_layernorm")
                keys = config.num_attention_heads // block.attention.n_heads_in_group
                states = self.attention(states, f"{here}.self_attn", keys)
            if not block.ffn.no_op:
                # A fused norm adds the residual, and fails if there is none yet.
                residual = states + residual
                states = self.norm(residual, f"{here}.post_attention_layernorm")
                width = rounded(block.ffn.ffn_mult, config.hidden_size)
                states = self.mlp(states, f"{here}.mlp", width)
        states = self.norm(states + residual, "model.norm")
        if not config.tie_word_embeddings:
            head = self.take("lm_head.weight", vocabulary, config.hidden_size)
        assert self.used == set(self.weights)
        return functional.linear(states, head)

    def norm(self, states: torch.Tensor, path: str) -> torch.Tensor:
        mean = states.square().mean(-1, keepdim=True)
        weight = self.take(f"{path}.weight", self.config.hidden_size)
        return states * torch.rsqrt(mean + self.config.rms_norm_eps) * weight

    def attention(self, states: torch.Tensor, path: str, keys: int) -> torch.Tensor:
        config, size = self.config, self.config.head_dim
        heads = config.num_attention_heads
        q, k, v = (
            functional.linear(
                states, self.take(f"{path}.{name}_proj.weight", number * size, config.hidden_size)
            ).unflatten(-1, (number, size))
            for name, number in (("q", heads), ("k", keys), ("v", keys))
        )
        k, v = (each.repeat_interleave(heads // keys, dim=2) for each in (self.rotate(k), v))
        mixed = functional.scaled_dot_product_attention(
            self.rotate(q).transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
        )
        out = self.take(f"{path}.o_proj.weight", config.hidden_size, heads * size)
        return functional.linear(mixed.transpose(1, 2).flatten(2), out)

    def mlp(self, states: torch.Tensor, path: str, width: int) -> torch.Tensor:
        hidden = self.config.hidden_size
        gate, up = (
            functional.linear(states, self.take(f"{path}.{name}_proj.weight", width, hidden))
            for name in ("gate", "up")
        )
        down = self.take(f"{path}.down_proj.weight", hidden, width)
        return functional.linear(functional.silu(gate) * up, down)

    def rotate(self, heads: torch.Tensor) -> torch.Tensor:
        """Rotary positions over the two halves of each head, [batch, length, heads, channels]."""
        size = heads.shape[-1]
        steps = self.config.rope_theta ** (-torch.arange(0, size, 2).float() / size)
        # Linear scaling divides positions by its factor.
        scale = (self.config.rope_scaling or {}).get("factor", 1.0)
        angles = torch.arange(heads.shape[1]).float()[:, None] / scale * steps
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]  # [length, 1, size / 2]
        one, two = heads.split(size // 2, -1)
        return torch.cat((one * cos - two * sin, two * cos + one * sin), -1)


def llama_cpp_shapes(folder: Path) -> list[tuple[int, int, int]]:
    """(query heads, KV heads, MLP width) of every layer, as the converter reads raw JSON."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    blocks, heads = config["block_configs"], config["num_attention_heads"]
    assert len(blocks) == config["num_hidden_layers"]
    assert isinstance(blocks[0]["ffn"]["ffn_mult"], float)
    assert config["rope_theta"] > 0
    found = []
    for block in blocks:
        attention, factor = block["attention"], block["ffn"]["ffn_mult"]
        if attention["n_heads_in_group"] is None:
            # True would be a linear layer in place of the attention.
            assert attention["replace_with_linear"] is False
            queries, keys = 0, 0
        else:
            queries, keys = heads, heads // attention["n_heads_in_group"]
        found.append((queries, keys, rounded(factor or 0.0, config["hidden_size"])))
    return found
