"""What the parts of a model are called: one table of families, keyed by ``config.model_type``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch

from prunebench.errors import PrunebenchError, did_you_mean

Groups = tuple[tuple[str, ...], ...]
Kind = Literal["attention", "mlp"]
KINDS: tuple[Kind, ...] = ("attention", "mlp")


class Block(NamedTuple):
    """One residual sub-block of the decoder: a layer's attention or its MLP, with the norm before it."""

    layer: int
    kind: Kind

    def __str__(self) -> str:
        return f"{self.layer}.{self.kind}"


class Cut(NamedTuple):
    """A linear that belongs to a coupled structure: each group owns equally many consecutive rows (0) or columns (1)."""

    linear: str
    dim: int


@dataclass(frozen=True)
class Family:
    """Module paths. ``decoder`` and ``layers`` start at the causal LM, ``norm`` at it too, the rest at one layer.

    ``inputs`` lists all linears of a layer in forward order, grouped by the input that they share. ``blocks`` are the
    modules that stand for a whole sub-block, ``norms`` those that only this sub-block reads. ``cuts`` are the linears
    that lose rows or columns together when a KV group or an MLP channel goes; the last of them writes to the residual.
    """

    decoder: str
    layers: str
    norm: str
    inputs: Groups
    blocks: Mapping[Kind, tuple[str, ...]]
    norms: Mapping[Kind, str | None]
    cuts: Mapping[Kind, tuple[Cut, ...]]
    keys: str
    """The linear whose rows count the KV groups."""
    fused: int = 1
    """How many of query, key and value lie in that linear, head by head."""
    head_dim: str = "head_dim"
    """The attention's attribute that says how many channels a head has."""
    heads_in_config: bool = True
    """Whether the config can say another number of heads with the same head size."""
    mlp_width: str = "intermediate_size"
    """The config's name for the number of MLP channels."""
    parallel: bool = False
    """Attention and MLP both read the layer's input; GPT-NeoX can say otherwise in its config."""


def _cuts(out: str, into: Sequence[str]) -> tuple[Cut, ...]:
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
    norm="model.decoder.final_layer_norm",  # None in the post-norm 350m
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
    norms={"attention": None, "mlp": None},  # one norm, which both read
    cuts={
        "attention": _cuts(
            "self_attn.dense", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        ),
        "mlp": _cuts("mlp.fc2", ("mlp.fc1",)),
    },
    keys="self_attn.k_proj",
    parallel=True,
)
FAMILIES = (
    ("llama", _LLAMA),
    ("mistral", _LLAMA),
    ("qwen2", _LLAMA),
    ("qwen3", _LLAMA),
    ("gemma", _LLAMA),
    ("opt", _OPT),
    ("gpt_neox", _NEOX),
    ("phi", _PHI),
)


@dataclass(frozen=True)
class Anatomy:
    """The named parts of one model. Looked up at every use, so that it stays right while layers are removed."""

    model: Any
    model_type: str
    family: Family

    @property
    def decoder(self) -> torch.nn.Module:
        """The base model: ids in, hidden states after the final norm out."""
        return self.model.get_submodule(self.family.decoder)  # type: ignore[no-any-return]

    @property
    def layers_path(self) -> str:
        return self.family.layers

    @property
    def layers(self) -> torch.nn.ModuleList:
        return self.model.get_submodule(self.family.layers)  # type: ignore[no-any-return]

    @property
    def embeddings(self) -> torch.nn.Embedding:
        return self.model.get_input_embeddings()  # type: ignore[no-any-return]

    @property
    def final_norm(self) -> torch.nn.Module | None:
        """None where the family's variant has none."""
        parent, _, name = self.family.norm.rpartition(".")
        return getattr(self.model.get_submodule(parent), name)  # type: ignore[no-any-return]

    @property
    def head(self) -> torch.nn.Linear:
        """The output embedding, [vocabulary, hidden]; its weight may be the embeddings' own."""
        return self.model.get_output_embeddings()  # type: ignore[no-any-return]

    @property
    def inputs(self) -> Groups:
        """Names of a layer's linears, grouped by the input that they share, in forward order."""
        return self.family.inputs

    @property
    def parallel(self) -> bool:
        """Whether attention and MLP of a layer both read the layer's input."""
        return bool(getattr(self.model.config, "use_parallel_residual", self.family.parallel))

    @property
    def blocks(self) -> list[Block]:
        """The residual sub-blocks that are there, in forward order."""
        return [
            Block(index, kind)
            for index, layer in enumerate(self.layers)
            for kind in KINDS
            if self.has(layer, kind)
        ]

    def has(self, layer: torch.nn.Module, kind: Kind) -> bool:
        """Whether the layer still has its attention or its MLP."""
        return not getattr(layer.get_submodule(self.family.blocks[kind][-1]), "is_removed", False)

    def linears(self, layer: torch.nn.Module) -> dict[str, torch.nn.Linear]:
        """The prunable linears of a decoder layer by relative path, in forward order; each weight is [out, in]."""
        return {
            name: layer.get_submodule(name)  # type: ignore[misc]
            for group in self.inputs_of(layer)
            for name in group
        }

    def inputs_of(self, layer: torch.nn.Module) -> Groups:
        """`inputs` without the linears of sub-blocks that are gone."""
        gone = {
            cut.linear
            for kind in KINDS
            if not self.has(layer, kind)
            for cut in self.family.cuts[kind]
        }
        kept = (tuple(name for name in group if name not in gone) for group in self.inputs)
        return tuple(group for group in kept if group)

    def cuts(self, kind: Kind) -> tuple[Cut, ...]:
        """The linears that lose rows or columns together when a KV group or an MLP channel goes."""
        return self.family.cuts[kind]

    def head_dim(self, layer: torch.nn.Module) -> int:
        """Channels of one attention head."""
        return int(
            getattr(layer.get_submodule(self.family.blocks["attention"][0]), self.family.head_dim)
        )

    def groups(self, layer: torch.nn.Module, kind: Kind) -> int:
        """KV groups of a layer's attention (a key-value head with its query heads), or channels of its MLP; 0 if gone.

        Raises PrunebenchError where the shapes do not divide into heads.
        """
        if not self.has(layer, kind):
            return 0
        if kind == "mlp":
            return width(layer.get_submodule(self.family.cuts["mlp"][-1].linear), 1)
        rows = width(layer.get_submodule(self.family.keys), 0)
        size = self.family.fused * self.head_dim(layer)
        count = rows // size
        widths = [
            width(layer.get_submodule(cut.linear), cut.dim) for cut in self.family.cuts["attention"]
        ]
        if rows % size or any(each % count for each in widths):
            raise PrunebenchError(
                f"{rows} rows of {self.family.keys} are no whole number of heads of {self.head_dim(layer)} channels",
                hint="the checkpoint's shapes do not fit its config",
            )
        return count


def width(linear: torch.nn.Module, dim: int) -> int:
    """Rows (0) or columns (1) of a linear's weight [out, in]."""
    weight: Any = linear.weight
    return int(weight.shape[dim])


def anatomy(model: Any) -> Anatomy:
    """The anatomy of a transformers causal LM.

    Raises PrunebenchError for a family that is not in the table, and for a layer with more or other linears than it says.
    """
    model_type = str(getattr(model.config, "model_type", type(model).__name__))
    families = dict(FAMILIES)
    if model_type not in families:
        raise PrunebenchError(
            f"the model family '{model_type}' is not known; known are {', '.join(families)}",
            hint=did_you_mean(model_type, families),
        )
    found = Anatomy(model, model_type, families[model_type])
    for index, layer in enumerate(found.layers):
        _check(found, index, layer)
    return found


def _check(found: Anatomy, index: int, layer: torch.nn.Module) -> None:
    named = {name for group in found.inputs_of(layer) for name in group}
    present = {
        name for name, module in layer.named_modules() if isinstance(module, torch.nn.Linear)
    }
    faults = [f"{name} is missing" for name in sorted(named - present)]
    faults += [f"{name} is unknown" for name in sorted(present - named)]
    if faults:
        raise PrunebenchError(
            f"layer {index} is not as the family '{found.model_type}' has it: {', '.join(faults)}",
            hint="merge adapters and undo quantisation first; only plain linears can be pruned",
        )
