"""Trained weights that are parts of larger parameters: autograd and optimisers know only the whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from prunebench.errors import PluginError
from prunebench.model.matrices import Matrix

Tensors = dict[str, Any]


def whole_parameters(
    model: Any,
    linears_of: Callable[[Any], Mapping[str, Any]],
    parameters: Mapping[str, torch.Tensor],
    masks: Mapping[str, torch.Tensor],
) -> tuple[Tensors, Tensors]:
    """Both by the paths of the model's own parameters.

    ``parameters`` and ``masks`` may also be named after the linears that ``linears_of`` gives by
    path: 'PATH.weight'. Raises PluginError if some but not all parts of a parameter are to be
    trained.
    """
    own = dict(model.named_parameters())
    # Without masks there is nothing to join. A mask always has the shape of a matrix [out, in], and
    # that of a Conv1D has the name of its parameter, but not its shape.
    if not masks and all(own.get(name) is each for name, each in parameters.items()):
        return dict(parameters), {}
    parts = {
        f"{path}.weight": linear
        for path, linear in linears_of(model).items()
        if isinstance(linear, Matrix)
    }
    if not parts:
        return dict(parameters), dict(masks)
    names = {id(parameter): name for name, parameter in own.items()}
    owners = {part: names[id(matrix.owner)] for part, matrix in parts.items()}
    found = {name: each for name, each in parameters.items() if name not in parts}
    for part in (name for name in parameters if name in parts):
        found[owners[part]] = parts[part].owner
        _check_complete(part, owners, parameters)
    joined = {name: mask for name, mask in masks.items() if name not in parts}
    for part in (name for name in masks if name in parts and owners[name] in found):
        whole = found[owners[part]]
        mask = joined.setdefault(owners[part], torch.zeros_like(whole, dtype=torch.bool))
        parts[part].view(mask).copy_(masks[part])
    return found, joined


def _check_complete(
    part: str, owners: Mapping[str, str], parameters: Mapping[str, torch.Tensor]
) -> None:
    for other, owner in owners.items():
        if owner == owners[part] and other not in parameters:
            raise PluginError(
                f"{part} is to be trained without {other}, and both are in {owner}",
                hint="train all matrices of a parameter, or none of them",
            )
