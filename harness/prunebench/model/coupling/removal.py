"""Put something in the place of an attention or MLP that adds nothing to the residual."""

from __future__ import annotations

from typing import Any

import torch

from prunebench.model.coupling.sub_block import SubBlock


def replacements(
    layer: torch.nn.Module, block: SubBlock, index: int
) -> list[tuple[str, torch.nn.Module]]:
    """(path, new module) pairs that remove one sub-block and the norms that only it needs.

    ``index``: of the layer, by which the attention finds its part of the KV cache.
    """
    # Here, because it defines torch modules, and plugins import this one before torch is loaded.
    from prunebench.model.coupling.removed import RemovedAttention, RemovedMLP

    # Only the last module adds to the residual (OPT's MLP is two linears of the layer). The others,
    # and the norms, become identities, so that the layer's own code still runs.
    *inner, last = block.modules
    new: torch.nn.Module
    if block.kind == "attention":
        own: Any = layer.get_submodule(last)
        new = RemovedAttention(block.answer, getattr(own, "layer_idx", index))
    else:
        new = RemovedMLP(block.answer)
    found = [(last, new), *((path, torch.nn.Identity()) for path in (*inner, *block.norms))]
    return [(path, module.train(layer.training)) for path, module in found]


def put(layer: torch.nn.Module, path: str, module: torch.nn.Module) -> None:
    """Put ``module`` at ``path``."""
    parent, _, name = path.rpartition(".")
    setattr(layer.get_submodule(parent), name, module)
