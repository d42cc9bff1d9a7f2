"""Make layers alike again with zeros, so that a plain config describes the model.

An engine that reads a model's config finds one width for all layers there. A pruned model whose
layers have different widths gets groups of zeros until they are alike. It computes what it did: the
new columns of the linears that write to the residual are zero. A sub-block that was removed comes
back as one of zeros, and a layer that lost both goes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from prunebench.errors import PrunebenchError
from prunebench.model.adapter import attached
from prunebench.model.anatomy import Anatomy, Block, anatomy
from prunebench.model.biases import make_biases
from prunebench.model.checkpoint import parameter_count
from prunebench.model.coupling.slices import narrow, widen
from prunebench.model.coupling.sub_block import KINDS, Kind
from prunebench.model.depth import text_configs
from prunebench.model.indexed import is_indexed
from prunebench.model.pruning_json import added_biases, is_plain
from prunebench.model.replacement import is_replaced
from prunebench.model.rotated import is_rotated
from prunebench.model.surgery import remove_layers, replace
from prunebench.model.width import sync_config
from prunebench.record.kept_units import index_text

_HINT = "leave it uneven, and load it with prunebench.load_pruned"
_BIASES = ("attention_bias", "mlp_bias")
"""Fields by which a config gives all linears of the attentions, or of the MLPs, a bias."""
_WHAT: Mapping[Kind, tuple[str, str]] = {
    "attention": ("attention", "KV groups"),
    "mlp": ("MLP", "channels"),
}


@dataclass(frozen=True)
class Padded:
    """A model with zeros added."""

    model: Any
    notes: tuple[str, ...]
    """What was added, one sentence each; none if nothing was."""


def uniform(model: Any) -> Padded:
    """A copy of ``model`` that its config alone describes; it shares the tensors that stay.

    All attentions get as many KV groups, and all MLPs as many channels, as the widest has. Logits
    stay the same up to rounding. Raises PrunebenchError if zeros cannot make the layers alike: a
    residual stream that is rotated, a network in a layer's place, a bias that no config has.
    """
    parts = anatomy(model)
    _check(parts)
    found = without_empty_layers(model)
    parts = anatomy(found)
    widest = {kind: _widest(parts, kind) for kind in KINDS}
    widths = {
        Block(index, kind): most
        for index in range(len(parts.layers))
        for kind, most in widest.items()
        if most and parts.sub_block(parts.layers[index], kind) is not None
    }
    notes = pad(found, widths)
    _give_biases(found)
    sync_config(found)
    # Some configs refuse a number of heads that does not divide the width: then the next one.
    # The dense model's own number is one that the config has had, so the search ends there.
    most = _dense_groups(parts)
    while not is_plain(found) and 0 < widest["attention"] < most:
        widest["attention"] += 1
        changed = {block: widest["attention"] for block in widths if block.kind == "attention"}
        notes = pad(found, changed) or notes
        sync_config(found)
    # The last word: a model that is built from the config alone has the same tensors.
    if not is_plain(found):
        raise PrunebenchError(
            f"the config of this {parts.model_type} model cannot describe it, even with all layers"
            " alike",
            hint=_HINT,
        )
    _repeat_rope_theta(found)
    return Padded(found, told(notes, model, found))


def pad(model: Any, widths: Mapping[Block, int]) -> list[str]:
    """Give these sub-blocks as many KV groups or channels, in place; returns what was changed.

    One that was removed comes back. Those that are as wide already, or can only be removed as a
    whole, stay as they are. ``model`` may share tensors with another one, which is not changed.
    Raises PrunebenchError if no layer has such a sub-block any more.
    """
    parts = anatomy(model)
    if attached(model) is not None:
        raise PrunebenchError(
            "the model has an adapter beside its linears, whose shapes must stay",
            hint="merge it: `recovery: {lora: {merge: true}}`, or save without padding",
        )
    changed: dict[Kind, set[int]] = {kind: set() for kind in KINDS}
    back: list[str] = []
    for block, wanted in widths.items():
        layer = parts.layers[block.layer]
        if not parts.has(layer, block.kind):
            _bring_back(parts, block, wanted)
            back.append(str(block))
        if not parts.can_cut(layer, block.kind):
            continue
        # Never narrower: that would lose weights.
        present = parts.groups(layer, block.kind)
        if present < wanted:
            widen(layer, parts.cuttable(layer, block.kind), present, wanted)
            changed[block.kind].add(block.layer)
    notes = [f"{', '.join(back)} came back as zeros"] if back else []
    # One note for each width, however many layers: a deep model would fill a screen.
    for kind, layers in changed.items():
        what, groups = _WHAT[kind]
        for wanted in sorted({widths[Block(index, kind)] for index in layers}):
            which = [index for index in sorted(layers) if widths[Block(index, kind)] == wanted]
            named = f"layer{'s' * (len(which) > 1)} {index_text(which)}"
            notes.append(f"{what} of {named} padded with zeros to {wanted:,} {groups}")
    return notes


def sharing_copy(model: Any) -> Any:
    """A copy of the modules and the config of ``model`` over the same tensors.

    Surgery puts new parameters into the modules of the copy, so the model itself stays.
    """
    # deepcopy takes what its memo has for a copy that it made already.
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def _check(parts: Anatomy) -> None:
    for index, layer in enumerate(parts.layers):
        if is_rotated(layer):
            raise PrunebenchError(
                "the residual stream of this model is rotated, and no plain config has the matrices"
                " that turn it",
                hint=_HINT,
            )
        if is_indexed(layer):
            raise PrunebenchError(
                "the sub-blocks of this model have channels of the residual stream of their own,"
                " and no plain config says which",
                hint=_HINT,
            )
        if is_replaced(layer):
            raise PrunebenchError(
                f"a trained network is in the place of layer {index}, which no plain config has",
                hint=f"train a decoder layer (`replacement: layer`), or {_HINT}",
            )


def without_empty_layers(model: Any) -> Any:
    """A sharing copy without the layers that lost both their attention and their MLP."""
    found = sharing_copy(model)
    parts = anatomy(found)
    empty = [
        index
        for index, layer in enumerate(parts.layers)
        if not any(parts.has(layer, kind) for kind in KINDS) and parts.coupled(layer).blocks
    ]
    if empty:
        remove_layers(found, empty)
    return found


def _widest(parts: Anatomy, kind: Kind) -> int:
    return max((parts.groups(layer, kind) for layer in parts.layers), default=0)


def _dense_groups(parts: Anatomy) -> int:
    """KV groups of the widest attention before anything was cut."""
    blocks = (parts.sub_block(layer, "attention") for layer in parts.layers)
    return max((b.heads.keys for b in blocks if b is not None and b.heads is not None), default=0)


def _bring_back(parts: Anatomy, block: Block, most: int) -> None:
    """Put a sub-block of zeros in the place of a removed one: a copy of that of another layer.

    It has at most ``most`` groups.
    """
    # A copy has the buffers, numbers and submodules that the family's code expects.
    donor = _donor(parts, block)
    own = parts.sub_block(parts.layers[donor], block.kind)
    assert own is not None
    layer = parts.layers[block.layer]
    removed: Any = layer.get_submodule(own.modules[-1])
    # The norms became identities with it. What they scale is zero, but the config has weights.
    for path in (*own.modules, *own.norms):
        module = copy.deepcopy(parts.layers[donor].get_submodule(path))
        for name, parameter in module.named_parameters():
            # Weights of norms may stay, because what they scale is zero.
            if path not in own.norms or name.endswith("bias"):
                parameter.zero_()
        inside: Any
        for inside in module.modules():
            if type(getattr(inside, "layer_idx", None)) is int:
                inside.layer_idx = getattr(removed, "layer_idx", block.layer)
        replace(layer, path, module)
    if own.no_cut is None and (present := parts.groups(layer, block.kind)) > most:
        narrow(layer, own, present, range(most))


def _donor(parts: Anatomy, block: Block) -> int:
    """A layer that still has such a sub-block, if possible in a layer of the same kind."""
    kinds = getattr(text_configs(parts)[0], "layer_types", None) or []
    found = [index for index, layer in enumerate(parts.layers) if parts.has(layer, block.kind)]
    if not found:
        raise PrunebenchError(
            f"no layer has its {'attention' if block.kind == 'attention' else 'MLP'} any more, so"
            f" none of zeros can be put into layer {block.layer}",
            hint=_HINT,
        )
    # Attentions with and without a window remember different numbers.
    alike = [
        index
        for index in found
        if len(kinds) == len(parts.layers) and kinds[index] == kinds[block.layer]
    ]
    return (alike or found)[0]


def _give_biases(model: Any) -> None:
    """Let the config have biases where a method added some, with zeros for the other linears."""
    # FLAP's, in the output and down projections.
    added = added_biases(model)
    if not added:
        return
    parts = anatomy(model)
    for config in text_configs(parts):
        for name in _BIASES:
            part = "attn" if name == "attention_bias" else "mlp"
            if getattr(config, name, None) is False and any(part in path for path in added):
                setattr(config, name, True)
    # The fields give a bias to more linears than those that a method chose: zeros for these.
    with torch.device("meta"):
        built = type(model)(copy.deepcopy(model.config))
    wanted = {name for name, _ in built.named_parameters() if name.endswith(".bias")}
    present = {name for name, _ in model.named_parameters() if name.endswith(".bias")}
    if rest := sorted(present - wanted):
        raise PrunebenchError(
            f"{rest[0].removesuffix('.bias')} got a bias by pruning, and the config of a"
            f" {parts.model_type} model has none there",
            hint=f"prune without `bias`, or {_HINT}",
        )
    make_biases(model, [name.removesuffix(".bias") for name in sorted(wanted - present)])


def _repeat_rope_theta(model: Any) -> None:
    """Write the base of rotary positions also where readers on transformers 4 look for it.

    They would take 10000 without a word.
    """
    for config in text_configs(anatomy(model)):
        rope = getattr(config, "rope_parameters", None) or {}
        if "rope_theta" in rope:
            config.rope_theta = rope["rope_theta"]


def told(notes: list[str], before: Any, after: Any) -> tuple[str, ...]:
    """What was added, with the number of parameters that ``after`` has more than ``before``."""
    if not notes:
        return ()
    parameters = parameter_count(after) - parameter_count(before)
    zeros = f"zeros are {parameters:,} parameters of the saved model"
    return (*(f"as saved, {note}" for note in notes), zeros)
