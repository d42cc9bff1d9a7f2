"""The model families that can be pruned: a table of module paths by ``config.model_type``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

Groups = tuple[tuple[str, ...], ...]
Kind = Literal["attention", "mlp"]
KINDS: tuple[Kind, ...] = ("attention", "mlp")


class Cut(NamedTuple):
    """A linear that loses rows (``dim`` 0) or columns (1) when a group of its sub-block is removed.

    Each group owns the same number of consecutive rows or columns.
    """

    linear: str
    dim: int


@dataclass(frozen=True)
class Family:
    """Module paths of one family.

    ``decoder``, ``layers`` and ``norm`` start at the causal LM, all other paths at one layer.
    """

    decoder: str
    layers: str
    norm: str
    inputs: Groups
    """All linears of a layer in forward order, grouped by the input that they share."""
    blocks: Mapping[Kind, tuple[str, ...]]
    """The modules to replace when a sub-block is removed; the last one adds to the residual."""
    norms: Mapping[Kind, str | None]
    """The norm that only this sub-block reads; None if both sub-blocks read it."""
    cuts: Mapping[Kind, tuple[Cut, ...]]
    """The linears that get smaller together when a KV group or an MLP channel is removed.

    The last one writes to the residual stream.
    """
    keys: str
    """The linear whose rows give the number of KV groups."""
    fused: int = 1
    """How many of query, key and value are in that linear, interleaved head by head."""
    head_dim: str = "head_dim"
    """The attention's attribute that holds the channels of a head."""
    heads_in_config: bool = True
    """Whether the config can hold another number of heads with the same head size."""
    mlp_width: str = "intermediate_size"
    """The config's name for the number of MLP channels."""
    parallel: bool = False
    """Whether attention and MLP both read the layer's input; GPT-NeoX's config can override it."""
    pads: bool = True
    """Whether the embeddings have a padding id, which must be one of the vocabulary."""
    tied: bool = False
    """Whether the head is the embeddings if the config does not say `tie_word_embeddings`."""


def _cuts(out: str, into: Sequence[str]) -> tuple[Cut, ...]:
    # Inside a sub-block a group's channels are the rows of the linears that read the residual
    # stream, and the columns of the one that writes to it.
    return (*(Cut(name, 0) for name in into), Cut(out, 1))


_LLAMA = Family(
    decoder="model",
    layers="model.layers",
    norm="model.norm",
    inputs=(
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.o_proj",),
        ("mlp.gate_proj", "mlp.up_proj"),
        ("mlp.down_proj",),
    ),
    blocks={"attention": ("self_attn",), "mlp": ("mlp",)},
    norms={"attention": "input_layernorm", "mlp": "post_attention_layernorm"},
    cuts={
        "attention": _cuts(
            "self_attn.o_proj", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        ),
        "mlp": _cuts("mlp.down_proj", ("mlp.gate_proj", "mlp.up_proj")),
    },
    keys="self_attn.k_proj",
)
_OPT = Family(
    decoder="model",
    layers="model.decoder.layers",
    norm="model.decoder.final_layer_norm",  # None in the post-norm OPT-350m
    inputs=(
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.out_proj",),
        ("fc1",),
        ("fc2",),
    ),
    blocks={"attention": ("self_attn",), "mlp": ("fc1", "fc2")},
    norms={"attention": "self_attn_layer_norm", "mlp": "final_layer_norm"},
    cuts={
        "attention": _cuts(
            "self_attn.out_proj", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        ),
        "mlp": _cuts("fc2", ("fc1",)),
    },
    keys="self_attn.k_proj",
    heads_in_config=False,
    mlp_width="ffn_dim",
    tied=True,
)
_NEOX = Family(
    decoder="gpt_neox",
    layers="gpt_neox.layers",
    norm="gpt_neox.final_layer_norm",
    inputs=(
        ("attention.query_key_value",),
        ("attention.dense",),
        ("mlp.dense_h_to_4h",),
        ("mlp.dense_4h_to_h",),
    ),
    blocks={"attention": ("attention",), "mlp": ("mlp",)},
    norms={"attention": "input_layernorm", "mlp": "post_attention_layernorm"},
    cuts={
        "attention": _cuts("attention.dense", ("attention.query_key_value",)),
        "mlp": _cuts("mlp.dense_4h_to_h", ("mlp.dense_h_to_4h",)),
    },
    keys="attention.query_key_value",
    fused=3,
    head_dim="head_size",
    heads_in_config=False,
    parallel=True,
    pads=False,
)
_PHI = Family(
    decoder="model",
    layers="model.layers",
    norm="model.final_layernorm",
    inputs=(
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.fc1"),
        ("self_attn.dense",),
        ("mlp.fc2",),
    ),
    blocks={"attention": ("self_attn",), "mlp": ("mlp",)},
    norms={"attention": None, "mlp": None},  # both read the layer's one norm
    cuts={
        "attention": _cuts(
            "self_attn.dense", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        ),
        "mlp": _cuts("mlp.fc2", ("mlp.fc1",)),
    },
    keys="self_attn.k_proj",
    parallel=True,
)
FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": replace(_LLAMA, tied=True),
    "opt": _OPT,
    "gpt_neox": _NEOX,
    "phi": _PHI,
}
