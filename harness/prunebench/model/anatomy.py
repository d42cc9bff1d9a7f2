"""What the parts of a model are called: one table of families, keyed by ``config.model_type``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from prunebench.errors import PrunebenchError, did_you_mean

Groups = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Family:
    """Module paths. ``decoder`` and ``layers`` start at the causal LM, ``norm`` at it too, the rest at one layer.

    ``inputs`` lists all linears of a layer in forward order, grouped by the input that they share.
    """

    decoder: str
    layers: str
    norm: str
    attention: str
    mlps: tuple[str, ...]
    inputs: Groups


_LLAMA = Family(
    decoder="model",
    layers="model.layers",
    norm="model.norm",
    attention="self_attn",
    mlps=("mlp",),
    inputs=(
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.o_proj",),
        ("mlp.gate_proj", "mlp.up_proj"),
        ("mlp.down_proj",),
    ),
)
_OPT = Family(
    decoder="model",
    layers="model.decoder.layers",
    norm="model.decoder.final_layer_norm",  # None in the post-norm 350m
    attention="self_attn",
    mlps=("fc1", "fc2"),
    inputs=(
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.out_proj",),
        ("fc1",),
        ("fc2",),
    ),
)
_NEOX = Family(
    decoder="gpt_neox",
    layers="gpt_neox.layers",
    norm="gpt_neox.final_layer_norm",
    attention="attention",
    mlps=("mlp",),
    inputs=(
        ("attention.query_key_value",),
        ("attention.dense",),
        ("mlp.dense_h_to_4h",),
        ("mlp.dense_4h_to_h",),
    ),
)
FAMILIES = (
    ("llama", _LLAMA),
    ("mistral", _LLAMA),
    ("qwen2", _LLAMA),
    ("qwen3", _LLAMA),
    ("opt", _OPT),
    ("gpt_neox", _NEOX),
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
    def attention_path(self) -> str:
        return self.family.attention

    @property
    def mlp_paths(self) -> tuple[str, ...]:
        return self.family.mlps

    @property
    def inputs(self) -> Groups:
        """Names of a layer's linears, grouped by the input that they share, in forward order."""
        return self.family.inputs

    def linears(self, layer: torch.nn.Module) -> dict[str, torch.nn.Linear]:
        """The prunable linears of a decoder layer by relative path, in forward order; each weight is [out, in]."""
        return {name: layer.get_submodule(name) for group in self.inputs for name in group}  # type: ignore[misc]


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
    named = {name for group in found.inputs for name in group}
    present = {name for name, module in layer.named_modules() if isinstance(module, torch.nn.Linear)}
    faults = [f"{name} is missing" for name in sorted(named - present)]
    faults += [f"{name} is unknown" for name in sorted(present - named)]
    if faults:
        raise PrunebenchError(
            f"layer {index} is not as the family '{found.model_type}' has it: {', '.join(faults)}",
            hint="merge adapters and undo quantisation first; only plain linears can be pruned",
        )
