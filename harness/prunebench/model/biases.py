"""Biases that a method gives to linears which had none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from prunebench.errors import PrunebenchError


def add_biases(model: Any, biases: Mapping[str, torch.Tensor]) -> None:
    """Add to the biases of these linears (by path), each [out]; one without a bias gets one.

    Raises PrunebenchError, with the model unchanged, if a module has another number of outputs.
    """
    modules: dict[str, Any] = {path: model.get_submodule(path) for path in biases}
    for path, module in modules.items():
        # A Conv1D, which always has a bias, stores its weight as [in, out].
        outputs = module.weight.shape[0] if module.bias is None else len(module.bias)
        if biases[path].shape != (outputs,):
            raise PrunebenchError(
                f"{path}: a bias of shape {list(biases[path].shape)} for {outputs} outputs",
                hint="give one number for each output of the linear",
            )
    for path, module in modules.items():
        added = biases[path].to(module.weight)
        if module.bias is not None:
            added = module.bias.detach() + added
        module.bias = torch.nn.Parameter(added, requires_grad=module.weight.requires_grad)


def make_biases(model: Any, paths: Iterable[str]) -> None:
    """Give these linears a bias of zeros, for weights that are filled in later."""
    for path in paths:
        module: Any = model.get_submodule(path)
        module.bias = torch.nn.Parameter(
            module.weight.new_zeros(module.weight.shape[0]), requires_grad=False
        )
