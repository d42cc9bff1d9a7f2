"""Which matrices of a layer can be pruned, and which of them read the same input."""

from __future__ import annotations

import re
from typing import Any

import torch

from prunebench.errors import PrunebenchError
from prunebench.model.experts import find_experts, unknown_experts
from prunebench.model.layers import LayersPath
from prunebench.model.matrices import Matrix
from prunebench.model.meta_forward import LayerFlow, Reads, layer_flow, shared_reads

Groups = tuple[tuple[str, ...], ...]
_NORM = re.compile(r"norm(gated)?$", re.IGNORECASE)
_ROUTER = {"gate", "router", "gating", "wg"}
_STATE_SPACE = {"x_proj", "dt_proj"}
"""Linears that make the parameters of a state space from its input."""
_MERGE = "merge adapters and undo quantisation first; only plain linears can be pruned"
_known: dict[tuple[Any, ...], Reads] = {}
"""What the modules of a layer read, by all that it depends on; see `_signature`."""
_flows: dict[tuple[Any, ...], LayerFlow] = {}
"""How hidden states go through layers, by all that it depends on."""


def matrices(layer: torch.nn.Module) -> dict[str, Any]:
    """All prunable matrices of a layer by path, in the order of its modules.

    Linears as they are; a Conv1D and each expert's part of a fused parameter as a `Matrix`. Never
    routers, norms, embeddings, convolutions and the parameters of state spaces. Raises
    PrunebenchError for adapters and quantised linears.
    """
    found = {path: _as_matrix(module) for path, module in _linears(layer).items()}
    for path, experts in find_experts(layer).items():
        found |= {f"{path}.{name}": matrix for name, matrix in experts.matrices().items()}
    return found


def input_groups(
    model: Any, where: LayersPath, layers: torch.nn.ModuleList, layer: torch.nn.Module
) -> Groups:
    """Paths of one layer's matrices in forward order, grouped by the input that they share.

    Matrices that a forward of plain text does not run are left out. Raises PrunebenchError if the
    model cannot run.
    """
    # One forward tells of all layers, so the other kinds of layer are remembered as well. Removed
    # sub-blocks have classes of their own, and so another signature.
    signature = _signature(model, layer)
    if signature not in _known:
        watched = [_linears(each) | _experts(each) for each in layers]
        signatures = [_signature(model, each) for each in layers]
        alike = where.layers if len(set(signatures)) == 1 else None
        found = shared_reads(model, where.decoder, watched, alike)
        for each, reads in zip(signatures, found, strict=True):
            _known.setdefault(each, reads)
    reads = _known[signature]
    experts = find_experts(layer)
    groups: dict[Any, list[str]] = {}
    for path, tensor in reads:
        if path in experts:
            for inner in experts[path].groups():
                groups[path, inner] = [f"{path}.{name}" for name in inner]
        else:
            groups.setdefault(tensor, []).append(path)
    return tuple(tuple(group) for group in groups.values())


def flow_of(model: Any, where: LayersPath, layers: torch.nn.ModuleList) -> LayerFlow:
    """How hidden states go from layer to layer. Raises PrunebenchError if the model cannot run."""
    key = tuple(_signature(model, layer) for layer in layers)
    if key not in _flows:
        _flows[key] = layer_flow(model, where.decoder, where.layers)
    return _flows[key]


def check_layers(layers: torch.nn.ModuleList) -> None:
    """Raise PrunebenchError, in one sentence that names the module, if matrices cannot be pruned.

    A method that overlooked matrices would prune less than it reports, so such models are refused.
    """
    # Zamba's layers share one attention: pruned in one layer it would be pruned in all, twice.
    owners: dict[int, int] = {}
    for index, layer in enumerate(layers):
        for path, module in layer.named_modules():
            if (fault := _fault(module)) is not None:
                raise PrunebenchError(f"layer {index}, {path}: {fault}", hint=_MERGE)
        if unknown := unknown_experts(layer):
            raise PrunebenchError(
                f"layer {index}, {unknown[0]}: the experts are stored in a form that is not known",
                hint="name a model whose experts transformers runs with its own functions",
            )
        for path, parameter in layer.named_parameters():
            if parameter.dim() > 1 and owners.setdefault(id(parameter), index) != index:
                raise PrunebenchError(
                    f"layer {index}, {path}: layer {owners[id(parameter)]} has the same weights",
                    hint="only models whose layers have weights of their own can be pruned",
                )


def _fault(module: torch.nn.Module) -> str | None:
    if type(module).__module__.startswith("peft."):
        return "this is an adapter"
    if not _is_linear(module):
        return None
    weight: Any = module.weight
    if not weight.is_floating_point() or weight.dim() != 2:
        return "this linear is quantised"
    return None


def _is_linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear) or _is_conv1d(module)


def _is_conv1d(module: torch.nn.Module) -> bool:
    """Whether this is GPT-2's linear, which stores its weight as [in, out]."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _linears(layer: torch.nn.Module) -> dict[str, Any]:
    experts = _experts_paths(layer)
    return {
        path: module
        for path, module in layer.named_modules()
        if _is_linear(module) and not _is_excluded(layer, path, module, experts)
    }


def _as_matrix(module: Any) -> Any:
    if _is_conv1d(module):
        return Matrix(module, "weight", turned=True, bias="bias")
    return module


def _experts(layer: torch.nn.Module) -> dict[str, Any]:
    return {path: each.module for path, each in find_experts(layer).items()}


def _experts_paths(layer: torch.nn.Module) -> list[str]:
    """Paths of all modules that hold a layer's experts, fused or one by one."""
    return [
        path
        for path, module in layer.named_modules()
        if path.rpartition(".")[2] == "experts" and not isinstance(module, torch.nn.Linear)
    ]


def _is_excluded(layer: torch.nn.Module, path: str, module: Any, experts: list[str]) -> bool:
    steps = path.split(".")
    parents = [layer.get_submodule(".".join(steps[:depth])) for depth in range(1, len(steps))]
    if "router" in path or any(
        _NORM.search(kind) and "attention" not in kind.lower()
        for kind in (type(each).__name__ for each in parents)
    ):
        return True
    if steps[-1] in _STATE_SPACE and any(hasattr(parents[-1], name) for name in ("A_log", "A")):
        return True
    for held in experts:
        beside = held.rpartition(".")[0]
        if path.startswith(f"{beside}.") and not path.startswith(f"{held}."):
            # The router, and the gate of an expert that all tokens go through.
            inner = path[len(beside) + 1 :].split(".")
            if _ROUTER & set(inner) or module.weight.shape[0] == 1:
                return True
    return False


def _signature(model: Any, layer: torch.nn.Module) -> tuple[Any, ...]:
    """All that decides which modules of a layer share an input."""
    config = model.config.get_text_config(decoder=True)
    flags = tuple(
        (name, value) for name, value in vars(config).items() if isinstance(value, bool | str)
    )
    modules = tuple((path, type(module)) for path, module in layer.named_modules())
    return type(model), flags, modules
