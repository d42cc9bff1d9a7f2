"""What a GGUF file of a checkpoint will hold: architecture, keys, and each tensor's name and shape.

Everything that llama.cpp computes in another way than transformers is refused here, with a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunebench.errors import PrunebenchError
from prunebench.model.adapter import FOLDER as ADAPTER_FOLDER
from prunebench.model.folder import read_checkpoint
from prunebench.model.gguf_write_config import (
    FAMILIES,
    Family,
    describe,
    head_size,
    read_text_config,
)
from prunebench.model.gguf_write_tokenizer import GGUFVocabulary, id_vocabulary, read_vocabulary
from prunebench.model.pruning_json import LOAD_PRUNED, read_pruning_file, refuse_changed_layers
from prunebench.model.safetensors_header import StoredTensor, is_float

if TYPE_CHECKING:
    import torch

    from prunebench.model.safetensors_io import TensorFiles

ZERO_MLP = 32
"""Channels of the MLP that takes the place of one that is gone: the smallest block of llama.cpp."""
_LLAMA = (
    "the architecture of llama.cpp for layers that differ, `deci`, computes Llama, Mistral and"
    " Qwen2 only"
)
_PAD = (
    "prune in a way that leaves all layers alike, or pad the widths (`prunebench prune --uniform`)"
)


@dataclass(frozen=True)
class LayerWidths:
    """Sizes of one decoder layer; 0 if the attention or the MLP is gone."""

    index: int
    """In the checkpoint."""
    heads: int
    kv_heads: int
    channels: int

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.heads, self.kv_heads, self.channels


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor of the file: its name there, its shape [out, in], and where its values are."""

    name: str
    shape: tuple[int, ...]
    source: str | None = None
    """The tensor's name in the checkpoint; None for one that is all zero."""
    heads: int = 0
    """Heads whose rows are reordered for rope; 0 for none."""
    offset: float = 0.0
    """Added to every number: Gemma's code adds 1 to a norm."""
    computed: torch.Tensor | None = None
    """Its values, if they are in no file."""

    @property
    def in_float32(self) -> bool:
        """llama.cpp reads vectors in float32 only, whatever matrices are stored as."""
        return len(self.shape) == 1

    def values(self, files: TensorFiles) -> torch.Tensor:
        """As llama.cpp wants them, of this shape."""
        import torch

        if self.computed is not None:
            return self.computed
        if self.source is None:
            return torch.zeros(self.shape)
        values = files.read(self.source)
        if self.heads:
            # [heads, 2 halves, pairs, in] -> [heads, pairs, 2, in]: the two that turn together
            # become neighbours.
            split = values.view(self.heads, 2, len(values) // self.heads // 2, -1)
            values = split.transpose(1, 2).reshape(self.shape)
        return values.float() + self.offset if self.offset else values


@dataclass(frozen=True)
class GGUFPlan:
    """All that `write_gguf` writes, apart from the precision."""

    architecture: str
    tensors: Sequence[GGUFTensor]
    stored: Mapping[str, StoredTensor]
    describe: Callable[[Any], None]
    """Adds the keys to a gguf.GGUFWriter."""


def plan_gguf(folder: Path, *, text: bool = True) -> GGUFPlan:
    """Plan the file; without ``text`` its tokens are their ids.

    Raises PrunebenchError if llama.cpp could not compute the model in ``folder``.
    """
    checkpoint = read_checkpoint(folder, tokenizer=text)
    _check_folder(folder)
    config = read_text_config(folder, checkpoint.config)
    family = FAMILIES[config.model_type]
    stored = {name: tensor for name, tensor in checkpoint.tensors.items() if is_float(tensor)}
    layers = [_widths(stored, index, config) for index in range(config.num_hidden_layers)]
    # Shapes are those of the weights: config.json has one number for all layers.
    kept = [one for one in layers if any(one.sizes)]  # a layer without anything only passes on
    if not kept:
        raise PrunebenchError(f"no layer of {folder} has an attention or an MLP")
    uneven = len({one.sizes for one in kept}) > 1 or not all(kept[0].sizes)
    rows, hidden = stored["model.embed_tokens.weight"].shape
    # `deci` takes a bias of any length.
    uneven = uneven or (family.full_bias and kept[0].heads * head_size(config) != hidden)
    architecture = _architecture(family, kept, uneven=uneven)
    tensors = [
        *_outside(stored, config, family),
        *_rope_factors(config),
        *(
            tensor
            for at, one in enumerate(kept)
            for tensor in _layer(stored, config, family, one, at, uneven)
        ),
    ]
    _check_all_used(stored, tensors, layers)
    written = [_written(one, at) for at, one in enumerate(kept)]
    vocabulary = read_vocabulary(folder, rows) if text else id_vocabulary(rows)
    return GGUFPlan(
        architecture,
        tensors,
        stored,
        _description(folder, config, written, vocabulary, hidden, rows),
    )


def _description(
    folder: Path,
    config: Any,
    written: Sequence[tuple[int, int, int]],
    vocabulary: GGUFVocabulary,
    hidden: int,
    rows: int,
) -> Callable[[Any], None]:
    def add(writer: Any) -> None:
        writer.add_type("model")
        writer.add_name(folder.resolve().name)
        describe(writer, config, written, hidden, rows)
        vocabulary.describe(writer)

    return add


def _check_folder(folder: Path) -> None:
    """Raise PrunebenchError for what a pruned folder can hold and llama.cpp cannot compute."""
    if (folder / ADAPTER_FOLDER).is_dir():
        raise PrunebenchError(
            f"{folder} has an adapter beside its weights, which this GGUF file would not hold",
            hint="merge it into the weights (the recovery's option), or " + LOAD_PRUNED,
        )
    pruning = read_pruning_file(folder)
    if pruning is not None:
        refuse_changed_layers(pruning.shape, "llama.cpp cannot compute")


def _widths(stored: Mapping[str, StoredTensor], index: int, config: Any) -> LayerWidths:
    def rows(name: str) -> int:
        tensor = stored.get(f"model.layers.{index}.{name}.weight")
        return 0 if tensor is None else tensor.shape[0]

    size = head_size(config)
    for name in ("self_attn.q_proj", "self_attn.k_proj"):
        if rows(name) % size:
            raise PrunebenchError(
                f"layer {index}: {name} has {rows(name)} rows, no multiple of the {size} channels"
                " of a head"
            )
    heads, kv_heads = rows("self_attn.q_proj") // size, rows("self_attn.k_proj") // size
    return LayerWidths(index, heads, kv_heads, rows("mlp.up_proj"))


def _architecture(family: Family, kept: Sequence[LayerWidths], *, uneven: bool) -> str:
    if not uneven:
        return family.architecture
    if family.uneven:
        return "deci"
    first = next((one for one in kept if one.sizes != kept[0].sizes), kept[0])
    raise PrunebenchError(
        f"layer {first.index} has another shape than the first one, and {_LLAMA}", hint=_PAD
    )


def _written(layer: LayerWidths, at: int) -> tuple[int, int, int]:
    """(heads, KV heads, channels) in the file, where zeros replace what was removed."""
    heads, kv_heads = layer.heads, layer.kv_heads
    if at == 0 and not heads:
        heads = kv_heads = 1
    return heads, kv_heads, layer.channels or ZERO_MLP


def _outside(stored: Mapping[str, StoredTensor], config: Any, family: Family) -> list[GGUFTensor]:
    """Embeddings, last norm and head. Tied embeddings have no head in the file."""
    found = [
        GGUFTensor(
            "token_embd.weight",
            stored["model.embed_tokens.weight"].shape,
            "model.embed_tokens.weight",
        ),
        GGUFTensor(
            "output_norm.weight",
            stored["model.norm.weight"].shape,
            "model.norm.weight",
            offset=family.norm_offset,
        ),
    ]
    if "lm_head.weight" in stored and not config.tie_word_embeddings:
        found.append(GGUFTensor("output.weight", stored["lm_head.weight"].shape, "lm_head.weight"))
    return found


def _rope_factors(config: Any) -> list[GGUFTensor]:
    """By what llama.cpp divides each frequency of Llama 3's rope; for other ropes there is none."""
    if config.rope_parameters.get("rope_type") != "llama3":
        return []
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device="cpu")  # [head_dim / 2]
    plain = config.rope_parameters["rope_theta"] ** (
        -2.0 / head_size(config) * scaled.new_ones(len(scaled)).cumsum(0).sub(1)
    )
    factors = plain / scaled
    return [GGUFTensor("rope_freqs.weight", tuple(factors.shape), computed=factors)]


def _layer(
    stored: Mapping[str, StoredTensor],
    config: Any,
    family: Family,
    layer: LayerWidths,
    at: int,
    uneven: bool,
) -> list[GGUFTensor]:
    """The tensors of the layer at place ``at`` of the file."""
    found: list[GGUFTensor] = []
    for ours, theirs in family.names.items():
        for ending in ("weight", "bias"):
            source = f"model.layers.{layer.index}.{ours}.{ending}"
            if source not in stored:
                continue
            turned = (family.turned or uneven) and ours in {"self_attn.q_proj", "self_attn.k_proj"}
            heads = layer.heads if ours.endswith("q_proj") else layer.kv_heads
            offset = family.norm_offset if "norm" in ours else 0.0
            name = f"blk.{at}.{theirs}.{ending}"
            found.append(
                GGUFTensor(name, stored[source].shape, source, heads if turned else 0, offset)
            )
    if uneven:
        found += _for_what_is_gone(stored, config, layer, at, {one.name for one in found})
    return found


def _for_what_is_gone(
    stored: Mapping[str, StoredTensor], config: Any, layer: LayerWidths, at: int, there: set[str]
) -> list[GGUFTensor]:
    hidden = stored["model.embed_tokens.weight"].shape[1]
    shapes: dict[str, tuple[int, ...]] = {}
    if not layer.channels:
        wide, narrow = (ZERO_MLP, hidden), (hidden, ZERO_MLP)
        shapes |= {"ffn_norm": (hidden,), "ffn_gate": wide, "ffn_up": wide, "ffn_down": narrow}
    if at == 0 and not layer.heads:
        head = (head_size(config), hidden)
        shapes |= {"attn_norm": (hidden,), "attn_q": head, "attn_k": head, "attn_v": head}
        shapes["attn_output"] = (hidden, head_size(config))
    names = {f"blk.{at}.{name}.weight": shape for name, shape in shapes.items()}
    return [GGUFTensor(name, shape) for name, shape in names.items() if name not in there]


def _check_all_used(
    stored: Mapping[str, StoredTensor], tensors: Sequence[GGUFTensor], layers: Sequence[LayerWidths]
) -> None:
    """Raise PrunebenchError for a weight that the file would not hold: it would be another model."""
    used = {tensor.source for tensor in tensors}
    empty = {f"model.layers.{one.index}." for one in layers if not any(one.sizes)}
    unused = ("lm_head.weight", "rotary_emb.inv_freq")
    for name in stored:
        if name in used or name.endswith(unused) or any(map(name.startswith, empty)):
            continue
        raise PrunebenchError(
            f"llama.cpp has no place for {name} in this family",
            hint="load the model with prunebench.load_pruned",
        )
