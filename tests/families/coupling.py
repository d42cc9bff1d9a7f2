"""Level 4 on one type: what is cut off gives the logits of what is silenced, and loads again."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch

from families.depth import has_a_sound_cache
from families.levels import WORKS, level
from families.weights import check_saved, logits, planned, refused
from prunebench import Anatomy, Block, PrunebenchError, anatomy
from prunebench.model.coupling.sub_block import KINDS
from prunebench.model.surgery import remove_blocks
from prunebench.model.width import keep_groups, keep_hidden
from prunebench.testing.any_type import tiny_model


@level("blocks")
def blocks(model_type: str) -> str:
    return outcome(model_type, "no_removal", removed)


@level("width")
def width(model_type: str) -> str:
    found = outcome(model_type, "no_cut", cut)
    if found == WORKS:
        for change in (every_layer, residual):
            model = tiny_model(model_type)
            if change(model):
                check_saved(model, logits(model))
                check_cache(model, model_type)
    return found


def outcome(model_type: str, refusal: str, change: Any) -> str:
    """Try ``change`` on one attention and one MLP that do not refuse."""
    sentence = "refused: nobody can tell the attention and the MLP of its layers apart"
    works = False
    for kind in KINDS:
        try:
            model = planned(model_type)
            parts = anatomy(model)
            _ = parts.coupling
        except PrunebenchError as error:
            return refused(error)
        chosen = [block for block in parts.blocks if block.kind == kind]
        reasons = [getattr(sub_block(parts, block), refusal) for block in chosen]
        usable = [block for block, why in zip(chosen, reasons, strict=True) if why is None]
        if not usable:
            sentence = next((f"refused: {why}" for why in reasons), sentence)
            continue
        before = logits(model)
        wanted = change(model, usable[len(usable) // 2])
        if wanted is not None:
            difference = float((logits(model) - wanted).abs().max())
            scale = float(wanted.abs().max())
            assert difference <= 1e-3 * scale, f"{kind}: the logits differ by {difference:.1g}"
            assert not torch.equal(logits(model), before), f"{kind}: nothing changed"
        check_saved(model, logits(model))
        check_cache(model, model_type)
        works = True
    return WORKS if works else sentence


def check_cache(model: Any, model_type: str) -> None:
    if not has_a_sound_cache(model):
        assert not has_a_sound_cache(tiny_model(model_type)), "other logits with a cache"


def sub_block(parts: Anatomy, block: Block) -> Any:
    return parts.sub_block(parts.layers[block.layer], block.kind)


def removed(model: Any, block: Block) -> torch.Tensor | None:
    """Remove the block. The logits of the model whose block writes zeros to the residual."""
    parts = anatomy(model)
    found = sub_block(parts, block)
    wanted = None
    if found.writer is not None:
        silent = copy.deepcopy(model)
        layer = anatomy(silent).layers[block.layer]
        for path in (found.writer, *found.norms):
            module = layer.get_submodule(path)
            if path == found.writer:
                module.weight.data.zero_()
            if getattr(module, "bias", None) is not None:
                module.bias.data.zero_()
        wanted = logits(silent)
    remove_blocks(model, [block])
    return wanted


def cut(model: Any, block: Block) -> torch.Tensor | None:
    """Keep the odd groups. The logits of the model in which the others write nothing."""
    parts = anatomy(model)
    layer = parts.layers[block.layer]
    groups = parts.groups(layer, block.kind)
    if groups == 1:
        return None
    name = parts.cuts(layer, block.kind)[-1].linear
    silent = copy.deepcopy(model)
    weight = anatomy(silent).linears(anatomy(silent).layers[block.layer])[name].weight.data
    weight.unflatten(1, (groups, -1))[:, ::2] = 0
    wanted = logits(silent)
    keep_groups(model, {block: range(1, groups, 2)})
    return wanted


def every_layer(model: Any) -> bool:
    """Keep half of the groups of all layers, so that a config might hold them."""
    parts = anatomy(model)
    kept = {
        block: range(max(1, parts.groups(layer, block.kind) // 2))
        for block, layer in cuttable(parts)
    }
    keep_groups(model, kept)
    return bool(kept)


def cuttable(parts: Anatomy) -> Iterator[tuple[Block, torch.nn.Module]]:
    for block in parts.blocks:
        layer = parts.layers[block.layer]
        if parts.can_cut(layer, block.kind):
            yield block, layer


def residual(model: Any) -> bool:
    parts = anatomy(model)
    if parts.coupling.no_hidden is not None:
        return False
    hidden = parts.embeddings.weight.shape[1]
    keep_hidden(model, [channel for channel in range(hidden) if channel % 4])
    return True
