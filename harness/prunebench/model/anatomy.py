"""The named parts of a model, whatever its family: decoder, layers, sub-blocks, linears, widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from prunebench.errors import PrunebenchError
from prunebench.model.experts import Experts, find_experts
from prunebench.model.families import FAMILIES, KINDS, Cut, Family, Kind
from prunebench.model.layers import LayersPath, find_layers
from prunebench.model.mixture import Mixture, mixture_of
from prunebench.model.prunable import Groups, check_layers, input_groups, matrices


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
    def family(self) -> Family:
        """What is known of attentions and MLPs. Raises PrunebenchError if nothing is."""
        if self.model_type not in FAMILIES:
            raise PrunebenchError(
                f"the attentions and MLPs of a {self.model_type} model are not known yet",
                hint="prune its weights or remove whole layers",
            )
        return FAMILIES[self.model_type]

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
        return bool(getattr(self.model.config, "use_parallel_residual", self.family.parallel))

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
        if self.model_type not in FAMILIES:
            return False
        return not getattr(layer.get_submodule(self.family.blocks[kind][-1]), "is_removed", False)

    def linears(self, layer: torch.nn.Module) -> dict[str, torch.nn.Linear]:
        """A layer's prunable matrices by relative path, in forward order; weights are [out, in].

        Linears as they are. A Conv1D of GPT-2 and the parts of fused experts have the same
        attributes: weight, bias, in_features, out_features.
        """
        found = matrices(layer)
        return {name: found[name] for group in self.inputs_of(layer) for name in group}

    def inputs_of(self, layer: torch.nn.Module) -> Groups:
        """The paths of `linears`, grouped by the input that they share, in forward order.

        Two share an input if they get the same tensor when the layer runs. Linears that a text
        does not use, such as those for images, are in no group.
        """
        return input_groups(self.model, self.where, self.layers, layer)

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

    def cuts(self, kind: Kind) -> tuple[Cut, ...]:
        """The linears that get smaller together when a KV group or an MLP channel is removed.

        The last one writes to the residual stream.
        """
        return self.family.cuts[kind]

    @property
    def channel_reader(self) -> str:
        """Path in a layer of the linear that reads the MLP's channels: its inputs are the channels.

        'mlp.down_proj' in a Llama. The index of a channel is the one that `keep_groups` takes.
        """
        return self.cuts("mlp")[-1].linear

    @property
    def head_reader(self) -> str:
        """Path in a layer of the linear that reads the attention's heads, such as o_proj.

        Its inputs are the heads' channels, head by head: `head_dim` of each. The heads of one KV
        group follow each other, and `groups` is the number of KV groups.
        """
        return self.cuts("attention")[-1].linear

    def head_dim(self, layer: torch.nn.Module) -> int:
        """Channels of one attention head."""
        return int(
            getattr(layer.get_submodule(self.family.blocks["attention"][0]), self.family.head_dim)
        )

    def groups(self, layer: torch.nn.Module, kind: Kind) -> int:
        """KV groups of a layer's attention, or channels of its MLP; 0 if it was removed.

        A KV group is one key-value head with the query heads that read it. Raises PrunebenchError
        if the shapes do not divide into heads.
        """
        if not self.has(layer, kind):
            return 0
        if kind == "mlp":
            return width(layer.get_submodule(self.family.cuts["mlp"][-1].linear), 1)
        # Count heads on the weights: the config has one number, but pruned layers may differ.
        rows = width(layer.get_submodule(self.family.keys), 0)
        size = self.family.fused * self.head_dim(layer)
        count = rows // size
        widths = [
            width(layer.get_submodule(cut.linear), cut.dim) for cut in self.family.cuts["attention"]
        ]
        if rows % size or any(each % count for each in widths):
            raise PrunebenchError(
                f"{rows} rows of {self.family.keys} do not divide into heads "
                f"of {self.head_dim(layer)} channels",
                hint="the checkpoint's shapes do not fit its config",
            )
        return count


def width(linear: torch.nn.Module, dim: int) -> int:
    """Rows (0) or columns (1) of a linear's weight [out, in]."""
    weight: Any = linear.weight
    return int(weight.shape[dim])


def anatomy(model: Any) -> Anatomy:
    """The anatomy of a transformers causal LM.

    Raises PrunebenchError, in one sentence that names the module, if it has no single list of
    decoder layers, or if matrices in them are adapters, quantised or shared between layers.
    """
    model_type = str(getattr(model.config, "model_type", type(model).__name__))
    found = Anatomy(model, model_type, find_layers(model))
    check_layers(found.layers)
    return found
