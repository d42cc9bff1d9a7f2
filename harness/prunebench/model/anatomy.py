"""The named parts of a model, whatever its family: decoder, layers, sub-blocks, linears, widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from prunebench.errors import PrunebenchError
from prunebench.model.coupling.find import layer_coupling, model_coupling
from prunebench.model.coupling.slices import stacked
from prunebench.model.coupling.sub_block import (
    KINDS,
    Coupling,
    Cut,
    Kind,
    LayerCoupling,
    SubBlock,
)
from prunebench.model.coupling.trace import is_at
from prunebench.model.coupling.whole import groups_of
from prunebench.model.experts import Experts, find_experts
from prunebench.model.layers import LayersPath, find_layers
from prunebench.model.meta_forward import LayerFlow
from prunebench.model.mixture import Mixture, mixture_of
from prunebench.model.prunable import Groups, check_layers, flow_of, input_groups, matrices


class Block(NamedTuple):
    """One residual sub-block: a layer's attention or its MLP, with the norm before it."""

    layer: int
    kind: Kind

    def __str__(self) -> str:
        return f"{self.layer}.{self.kind}"


@dataclass(frozen=True)
class Anatomy:
    """The named parts of one model.

    Nothing is cached: every property looks at the model anew, because surgery changes it.
    """

    model: Any
    model_type: str
    where: LayersPath

    @property
    def decoder_path(self) -> str:
        """Path of `decoder` in the model: 'model'."""
        return self.where.decoder

    @property
    def decoder(self) -> torch.nn.Module:
        """The text decoder: ids in, hidden states after the final norm out."""
        return self.model.get_submodule(self.where.decoder)  # type: ignore[no-any-return]

    @property
    def layers_path(self) -> str:
        """Path of `layers` in the model: 'model.layers'."""
        return self.where.layers

    @property
    def layers(self) -> torch.nn.ModuleList:
        """The decoder layers that are left."""
        return self.model.get_submodule(self.where.layers)  # type: ignore[no-any-return]

    @property
    def embeddings(self) -> torch.nn.Embedding:
        """The token embeddings, weight [vocabulary, hidden]."""
        return self.model.get_input_embeddings()  # type: ignore[no-any-return]

    @property
    def final_norm(self) -> torch.nn.Module | None:
        """The norm after the last layer; None if the model has none (post-norm OPT-350m)."""
        path = self.where.norm
        return None if path is None else self.model.get_submodule(path)

    @property
    def head(self) -> torch.nn.Linear:
        """The output embedding, [vocabulary, hidden]; may share its weight with `embeddings`."""
        return self.model.get_output_embeddings()  # type: ignore[no-any-return]

    @property
    def parallel(self) -> bool:
        """Whether attention and MLP both read the layer's input, instead of one after the other."""
        return any(self.coupled(layer).parallel for layer in self.layers)

    @property
    def coupling(self) -> Coupling:
        """What belongs together in this model, and what its config can hold.

        Raises PrunebenchError if no small model of this class runs, so that nothing can be proved.
        """
        return model_coupling(self.model)

    def coupled(self, layer: torch.nn.Module) -> LayerCoupling:
        """What belongs together in one layer. Raises PrunebenchError as `coupling` does."""
        return layer_coupling(self.model, layer)

    def sub_block(self, layer: torch.nn.Module, kind: Kind) -> SubBlock | None:
        """The layer's attention or MLP, also if it was removed; None if nobody found one."""
        try:
            return self.coupled(layer).blocks.get(kind)
        except PrunebenchError:
            return None

    def cuttable(self, layer: torch.nn.Module, kind: Kind) -> SubBlock:
        """The sub-block, whose groups can be removed one by one.

        Raises PrunebenchError that names the module if nothing proves what belongs together.
        """
        found = self.coupled(layer).blocks.get(kind)
        if found is None or found.no_cut is not None:
            what = "attention" if kind == "attention" else "MLP"
            raise PrunebenchError(
                found.no_cut
                if found is not None and found.no_cut
                else f"{type(layer).__name__} has no {what} that can be told from the rest",
                hint="remove whole layers, or prune weights only",
            )
        return found

    def can_cut(self, layer: torch.nn.Module, kind: Kind) -> bool:
        """Whether KV groups or channels can be removed from this attention or MLP."""
        block = self.sub_block(layer, kind)
        return block is not None and block.no_cut is None and self.has(layer, kind)

    @property
    def blocks(self) -> list[Block]:
        """The residual sub-blocks that were not removed, in forward order."""
        return [
            Block(index, kind)
            for index, layer in enumerate(self.layers)
            for kind in KINDS
            if self.has(layer, kind)
        ]

    def has(self, layer: torch.nn.Module, kind: Kind) -> bool:
        """Whether the layer still has its attention or its MLP."""
        # Here, because it defines torch modules, and plugins import this one before torch is loaded.
        from prunebench.model.coupling.removed import is_removed

        block = self.sub_block(layer, kind)
        return block is not None and not is_removed(layer.get_submodule(block.modules[-1]))

    def linears(
        self, layer: torch.nn.Module, kind: Kind | None = None
    ) -> dict[str, torch.nn.Linear]:
        """A layer's prunable matrices by relative path, in forward order; weights are [out, in].

        Linears as they are. A Conv1D of GPT-2 and the parts of fused experts have the same
        attributes: weight, bias, in_features, out_features. ``kind``: only those of the layer's
        attention or MLP.
        """
        found = matrices(layer)
        names = [name for group in self.inputs_of(layer) for name in group]
        if kind is not None:
            block = self.sub_block(layer, kind)
            inside = () if block is None else block.modules
            names = [name for name in names if any(is_at(name, path) for path in inside)]
        return {name: found[name] for name in names}

    def inputs_of(self, layer: torch.nn.Module) -> Groups:
        """The paths of `linears`, grouped by the input that they share, in forward order.

        Two share an input if they get the same tensor when the layer runs. Linears that a text
        does not use, such as those for images, are in no group.
        """
        return input_groups(self.model, self.where, self.layers, layer)

    @property
    def flow(self) -> LayerFlow:
        """How hidden states go from layer to layer, and why layers cannot run one by one."""
        return flow_of(self.model, self.where, self.layers)

    def experts(self, layer: torch.nn.Module) -> dict[str, Experts]:
        """The modules of a layer that hold routed experts, by relative path; none if it has none.

        Each knows its `count`, and gives its weights expert by expert with `matrices()`.
        """
        return find_experts(layer)

    def mixture(self) -> Mixture:
        """The routed experts of all layers, and what their routers ask for.

        Raises PrunebenchError if the model has none, or if experts of it cannot be removed.
        """
        return mixture_of(self.model)

    def by_layer(self, of_experts: Mapping[str, Sequence[int]]) -> dict[int, Sequence[int]]:
        """What is known by the path of a module with experts, by the index of its layer."""
        prefix = f"{self.layers_path}."
        return {
            int(path.removeprefix(prefix).partition(".")[0]): each
            for path, each in of_experts.items()
        }

    def cuts(self, layer: torch.nn.Module, kind: Kind) -> tuple[Cut, ...]:
        """The linears that get smaller together when a KV group or an MLP channel is removed.

        The last one writes to the residual stream. Raises PrunebenchError that names the module if
        nothing proves what belongs together.
        """
        return self.cuttable(layer, kind).cuts

    def stacked(self, layer: torch.nn.Module, kind: Kind, cut: Cut) -> list[torch.Tensor]:
        """The rows or columns of a cut by the matrices that are stacked in its linear.

        Queries, keys and values, or gate and up; one matrix if nothing is stacked. Each has the
        indices of its rows group by group, int64 [groups * rows of a group].
        """
        return stacked(layer, self.cuttable(layer, kind), cut, self.groups(layer, kind))

    def channel_reader(self, layer: torch.nn.Module) -> str:
        """Path in the layer of the linear that reads the MLP's channels: its inputs are these.

        'mlp.down_proj' in a Llama. The index of a channel is the one that `keep_groups` takes.
        Raises PrunebenchError as `cuts` does.
        """
        return self.cuts(layer, "mlp")[-1].linear

    def head_reader(self, layer: torch.nn.Module) -> str:
        """Path in the layer of the linear that reads the attention's heads, such as o_proj.

        Its inputs are the heads' channels, head by head: `head_dim` of each. The heads of one KV
        group follow each other, and `groups` is the number of KV groups. Raises PrunebenchError as
        `cuts` does.
        """
        return self.cuts(layer, "attention")[-1].linear

    def head_dim(self, layer: torch.nn.Module) -> int:
        """Channels of one attention head, as `head_reader` reads them.

        Raises PrunebenchError as `cuts` does.
        """
        heads = self.cuttable(layer, "attention").heads
        assert heads is not None
        return heads.dim

    def groups(self, layer: torch.nn.Module, kind: Kind) -> int:
        """KV groups of a layer's attention, or channels of its MLP; 0 if it was removed.

        A KV group is one key-value head with the query heads that read it. 1 if the sub-block can
        only be removed as a whole. Raises PrunebenchError if the shapes do not divide into heads.
        """
        if not self.has(layer, kind):
            return 0
        if not self.can_cut(layer, kind):
            return 1
        try:
            return groups_of(layer, self.cuttable(layer, kind))
        except ValueError as error:
            raise PrunebenchError(
                str(error), hint="the checkpoint's shapes do not fit its config"
            ) from error


def anatomy(model: Any) -> Anatomy:
    """The anatomy of a transformers causal LM.

    Raises PrunebenchError, in one sentence that names the module, if it has no single list of
    decoder layers, or if matrices in them are adapters, quantised or shared between layers.
    """
    model_type = str(getattr(model.config, "model_type", type(model).__name__))
    found = Anatomy(model, model_type, find_layers(model))
    check_layers(found.layers)
    return found
