"""Apply: remove exactly the units that a file names, such as the result of another method."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator

import prunebench
from prunebench import Block, Field, Method, PrunebenchError, anatomy, hookimpl, indices_of
from prunebench_plugins.apply_units import PORTS, Units, read_units

if TYPE_CHECKING:
    from prunebench import Anatomy, Context


class Apply(Method):
    """Remove the units that a file names, and nothing else.

    The file is the `pruning.json` of a pruned model, the record `cells/ID.json` of a run, or a list
    of your own in JSON or YAML:

        layers: [3, 7]               decoder layers
        attention: [1]               layers that lose their attention
        mlp: [1, 2]                  layers that lose their MLP
        kv_groups: {4: [0]}          KV groups with their query heads, by layer
        mlp_channels: {4: "0-99"}    MLP channels, by layer; lists may be written as ranges
        hidden: "0-3"                channels of the residual stream
        mlp_reads: {4: "0-9"}        channels of it that the MLP does not read, by layer; likewise
                                     mlp_writes, attention_reads and attention_writes

    All numbers count from 0 in the model before anything is removed. Weights are not updated: what
    a method or a recovery changed beside removing units is not in such a file. The cell holds what
    the file says, so the file may move or change afterwards.
    """

    name = "apply"
    structure: ClassVar = frozenset({"layers", "blocks", "width", "experts"})

    class Options(prunebench.Options):
        units: Annotated[Units, BeforeValidator(read_units, json_schema_input_type=str | Units)] = (
            Field(
                description="the file: pruning.json, a record, or units to remove in JSON or YAML;"
                " or such units themselves"
            )
        )

    def prune(self, model: Any, context: Context) -> None:
        units: Units = self.options.units
        parts = anatomy(model)
        _check_layers(parts, units)
        layers = list(context.kept_layers)  # what each layer is called in the dense model
        gone = set(indices_of(units.layers)[0])
        removed = [block for block in _removed(units) if block.layer not in gone]
        if absent := sorted(set(removed) - set(parts.blocks)):
            raise PrunebenchError(
                f"no {absent[0]} to remove: the model has none",
                hint="the units belong to another model",
            )
        narrower = {
            block: _kept(indices, parts.groups(parts.layers[block.layer], block.kind), str(block))
            for block, indices in _narrower(units)
            if block.layer not in gone and block not in removed
        }
        experts = _experts(parts, units)
        if any(getattr(units, name) for name in PORTS):
            _index(model, units, parts, context)
            parts = anatomy(model)
        hidden = parts.embeddings.weight.shape[1]
        channels = _kept(units.hidden, hidden, "the residual stream")
        # First what a family may refuse, so that a refusal leaves the model as it was.
        if len(channels) < hidden:
            context.keep_hidden(model, channels)
        if removed:
            context.remove_blocks(model, removed)
        # A layer that lost both blocks is gone: from here on others may have other numbers.
        now = {layers.index(dense): index for index, dense in enumerate(context.kept_layers)}
        context.keep_groups(
            model, {Block(now[layer], kind): kept for (layer, kind), kept in narrower.items()}
        )
        if gone:
            context.remove_layers(model, [now[layer] for layer in gone if layer in now])
        if experts:
            kept_experts = {
                f"{parts.layers_path}.{now}.{path}": kept
                for now, dense in enumerate(context.kept_layers)
                for path, kept in experts.get(dense, {}).items()
            }
            context.keep_experts(model, kept_experts)


def _index(model: Any, units: Units, parts: Anatomy, context: Context) -> None:
    """Give sub-blocks channels of the residual stream of their own."""
    if indices_of(units.hidden)[0]:
        raise PrunebenchError(
            "the units name channels of the residual stream both of the model (`hidden`) and of"
            " sub-blocks",
            hint="name one of them",
        )
    width = parts.embeddings.weight.shape[1]
    chosen: dict[str, dict[Block, list[int]]] = {"reads": {}, "writes": {}}
    for name in PORTS:
        kind: Any
        kind, _, what = name.partition("_")
        for layer, text in getattr(units, name).items():
            chosen[what][Block(layer, kind)] = _kept(text, width, f"layer {layer}, {name}")
    context.index_residual(model, chosen["reads"], chosen["writes"])


def _check_layers(parts: Anatomy, units: Units) -> None:
    """Raise PrunebenchError if the units name layers that the model does not have."""
    depth = len(parts.layers)
    named = [*indices_of(units.layers)[0]]
    named += [block.layer for block in _removed(units)]
    named += [block.layer for block, _ in _narrower(units)]
    named += units.experts
    named += [layer for name in PORTS for layer in getattr(units, name)]
    totals = {indices_of(text)[1] for text in (units.layers, units.attention, units.mlp)} - {None}
    if totals - {depth} or any(layer >= depth for layer in named):
        other = next(iter(totals - {depth}), None)
        what = f"of {other} layers" if other else f"with a layer {max(named)}"
        raise PrunebenchError(
            f"the units are those of a model {what}, and this one has layers 0 to {depth - 1}",
            hint="name the file of the same model; layers count from 0",
        )
    layers, attentions, mlps = (
        set(indices_of(text)[0]) for text in (units.layers, units.attention, units.mlp)
    )
    if layers | (attentions & mlps) >= set(range(depth)):  # without both blocks a layer goes too
        raise PrunebenchError(
            f"all {depth} layers would be removed", hint="leave at least one layer"
        )


def _removed(units: Units) -> Iterator[Block]:
    for layer in indices_of(units.attention)[0]:
        yield Block(layer, "attention")
    for layer in indices_of(units.mlp)[0]:
        yield Block(layer, "mlp")


def _narrower(units: Units) -> Iterator[tuple[Block, str]]:
    """(block, groups to remove) of the attentions and MLPs that get narrower."""
    for layer, indices in units.kv_groups.items():
        yield Block(layer, "attention"), indices
    for layer, indices in units.mlp_channels.items():
        yield Block(layer, "mlp"), indices


def _experts(parts: Anatomy, units: Units) -> dict[int, dict[str, list[int]]]:
    """The experts to keep, by layer and the path of their module in it; none if all stay."""
    if not units.experts:
        return {}
    found = {}
    for index, layer in enumerate(parts.layers):
        there = parts.experts(layer)
        if index in units.experts and not there:
            raise PrunebenchError(
                f"layer {index} has no routed experts",
                hint="the units belong to another model",
            )
        text = units.experts.get(index, "none")
        found[index] = {
            path: _kept(text, each.count, f"the experts of layer {index}")
            for path, each in there.items()
        }
    return found


def _kept(text: str, present: int, where: str) -> list[int]:
    """The indices of ``present`` units that are not in ``text``."""
    removed, total = indices_of(text)
    if total not in {None, present} or (removed and removed[-1] >= present):
        said = f"of {total}" if total else f"up to {removed[-1]}"
        raise PrunebenchError(
            f"{where}: the units count {said}, and this model has {present} there",
            hint="name the file of the same model; units count from 0",
        )
    if len(removed) == present:
        raise PrunebenchError(
            f"{where}: all {present} would be removed",
            hint="to remove an attention or an MLP, name its layer under `attention` or `mlp`",
        )
    gone = set(removed)
    return [index for index in range(present) if index not in gone]


@hookimpl
def prunebench_register_method() -> type[Method]:
    return Apply
