"""Proofs about the whole model: residual channels, and what its config can hold."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from prunebench.model.coupling.proof import TOLERANCE, ProofModel, failure
from prunebench.model.coupling.residual import (
    Dims,
    UnknownParameterError,
    in_layer,
    mask_model,
    narrow_model,
)
from prunebench.model.coupling.slices import narrow, width
from prunebench.model.coupling.sub_block import Coupling, Kind, LayerCoupling, SubBlock
from prunebench.model.layers import decoder_layers

_CHANNELS = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "dff", "d_ff")


def whole(proof: ProofModel, blocks: Sequence[dict[Kind, SubBlock]]) -> Coupling:
    """The coupling of the model of the proof: one entry for each of its layers."""
    hidden = int(proof.model.get_input_embeddings().weight.shape[1])
    dims: list[Dims] = []
    reason: str | None = None
    holds = False
    try:
        dims = [
            in_layer(layer, own, hidden) for layer, own in zip(proof.layers, blocks, strict=True)
        ]
        holds, reason = _residual(proof, dims, hidden)
    except UnknownParameterError as unknown:
        reason = str(unknown)
    except Exception as error:
        reason = failure(error)
    return Coupling(
        layers=tuple(
            LayerCoupling(own, dims[index] if reason is None else ())
            for index, own in enumerate(blocks)
        ),
        channels_field=_channels_field(proof, blocks),
        heads_in_config=_heads_in_config(proof, blocks),
        hidden_in_config=holds,
        no_hidden=reason,
    )


def _residual(proof: ProofModel, dims: Sequence[Dims], hidden: int) -> tuple[bool, str | None]:
    """Whether the config can hold fewer residual channels, and why they cannot be removed."""
    kept = torch.tensor([channel for channel in range(hidden) if channel % 4 != 1])
    masked = copy.deepcopy(proof.model)
    mask_model(masked, decoder_layers(masked), dims, kept)
    sliced = copy.deepcopy(proof.model)
    narrow_model(sliced, decoder_layers(sliced), dims, kept)
    expected = proof.logits_of(masked)
    wrong = proof.differs(proof.logits_of(sliced), expected)
    if wrong > TOLERANCE:
        return False, f"sliced and masked logits differ by {wrong:.1g} of the largest"
    fields: dict[str, Any] = {"hidden_size": len(kept)}
    if (head_dim := head_dim_of(proof.layers)) is not None:
        fields["head_dim"] = head_dim
    rebuilt = rebuild(sliced, fields)
    if rebuilt is None:
        return False, None
    if proof.differs(proof.logits_of(rebuilt), expected) > TOLERANCE:
        return False, "its embeddings depend on their number"
    return True, None


def head_dim_of(layers: torch.nn.ModuleList) -> int | None:
    """Channels of a head, as the first attention that says it does; None if none does."""
    modules = (module for layer in layers for module in layer.modules())
    sizes = (getattr(module, "head_dim", None) for module in modules)
    return next((size for size in sizes if isinstance(size, int)), None)


def rebuild(model: Any, fields: dict[str, Any]) -> Any:
    """A model built from the config with these fields, with the weights of ``model``.

    None if the config refuses them, or if the weights do not fit.
    """
    config = copy.deepcopy(model.config)
    text = config.get_text_config(decoder=True)
    try:
        for name, value in fields.items():
            setattr(text, name, value)
        config = type(config).from_dict(config.to_dict())
        built = type(model)(config).eval()
        built.requires_grad_(requires_grad=False)
        built.load_state_dict(model.state_dict())
    except Exception:
        return None
    return built


def _all_narrow(
    proof: ProofModel, blocks: Sequence[dict[Kind, SubBlock]], kind: Kind
) -> tuple[Any, set[int]]:
    """A copy of the model in which every layer lost half its groups, and how many each has now."""
    model = copy.deepcopy(proof.model)
    left: set[int] = set()
    for layer, own in zip(decoder_layers(model), blocks, strict=True):
        block = own.get(kind)
        if block is None or block.no_cut or not block.cuts:
            continue
        groups = groups_of(layer, block)
        kept = range(max(1, groups // 2))
        narrow(layer, block, groups, kept)
        left.add(len(kept))
    return model, left


def groups_of(layer: torch.nn.Module, block: SubBlock) -> int:
    """KV groups of an attention as it is now, or channels of an MLP.

    Raises ValueError if the rows and columns do not divide into them.
    """
    columns = width(layer.get_submodule(block.cuts[-1].linear), 1)
    if block.heads is None:
        return columns
    # Query heads for each key head stay as many as they were.
    groups = columns * block.heads.keys // (block.heads.query * block.heads.dim)
    for cut in block.cuts:
        size = width(layer.get_submodule(cut.linear), cut.dim)
        if groups == 0 or size % groups:
            what = "columns" if cut.dim else "rows"
            message = f"{size} {what} of {cut.linear} do not divide into {groups} KV groups"
            raise ValueError(message)
    return groups


def _channels_field(proof: ProofModel, blocks: Sequence[dict[Kind, SubBlock]]) -> str | None:
    """The field of the config that may have another number of MLP channels."""
    model, left = _all_narrow(proof, blocks, "mlp")
    config = proof.model.config.get_text_config(decoder=True)
    if len(left) != 1:
        return None
    names = [name for name in _CHANNELS if hasattr(config, name)]
    return next(
        (name for name in names if _holds(proof, model, {name: min(left)})),
        None,
    )


def _heads_in_config(proof: ProofModel, blocks: Sequence[dict[Kind, SubBlock]]) -> bool:
    """Whether the config can hold fewer heads of the same size."""
    model, left = _all_narrow(proof, blocks, "attention")
    heads = {own["attention"].heads for own in blocks if "attention" in own} - {None}
    if len(left) != 1 or len(heads) != 1:
        return False
    (before,) = heads
    assert before is not None
    # Latent attention: the config's head_dim is that of another part of a head, and stays.
    said = getattr(proof.model.config.get_text_config(decoder=True), "head_dim", None)
    size = {"head_dim": before.dim} if said in {None, before.dim} else {}
    keys = min(left)
    if keys == before.keys:  # one KV group: nothing is narrower
        return False
    return _holds(
        proof,
        model,
        {
            **size,
            "num_attention_heads": before.query * keys // before.keys,
            "num_key_value_heads": keys,
        },
    )


def _holds(proof: ProofModel, model: Any, fields: dict[str, Any]) -> bool:
    try:
        rebuilt = rebuild(model, fields)
        return rebuilt is not None and (
            proof.differs(proof.logits_of(rebuilt), proof.logits_of(model)) <= TOLERANCE
        )
    except Exception:
        return False
