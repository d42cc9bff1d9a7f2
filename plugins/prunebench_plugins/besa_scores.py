"""The scores by which BESA ranks weights, and what each has to know of a linear's input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from prunebench import PrunebenchError
from prunebench_plugins.sparsegpt import inverse_factor

if TYPE_CHECKING:
    from prunebench import LayerTraining, LinearStats

DAMPING = 0.01
STATISTICS: Mapping[str, frozenset[str]] = {
    "wanda": frozenset({"input_norm"}),
    "magnitude": frozenset(),
    "sparsegpt": frozenset({"hessian"}),
    "sparsegpt-released": frozenset({"hessian"}),
    "ria": frozenset({"input_norm"}),
}
"""The statistics that each score needs."""


def scores_of(metric: str, layer: LayerTraining) -> dict[str, torch.Tensor]:
    """The score of every weight of a layer, float32 [out, in], by linear; low ones go first."""
    diagonals: dict[int, torch.Tensor] = {}
    found = {}
    for name, linear in layer.linears.items():
        weight, stats = linear.weight.detach().float(), layer.stats[name]
        if metric == "magnitude":
            found[name] = weight.abs()
        elif metric == "wanda":  # |w| ||x||
            found[name] = weight.abs() * stats.input_norm
        elif metric == "ria":  # (|w| / sum of its column + |w| / sum of its row) ||x||^(1/2)
            size = weight.abs()
            relative = _share(size, 0) + _share(size, 1)
            found[name] = relative * stats.input_norm.sqrt()
        else:
            # Linears that read one input share its Hessian, so its factor as well.
            key = id(stats.hessian)
            if key not in diagonals:
                diagonals[key] = _factor_diagonal(stats)
            power = 2 if metric == "sparsegpt" else 1
            found[name] = weight.square() / diagonals[key] ** power
            # Inputs that are always zero need no weight.
            found[name][:, stats.hessian.diagonal() == 0] = 0
    return found


def _share(size: torch.Tensor, dim: int) -> torch.Tensor:
    """Each entry as a share of its sum along ``dim``; 0 if that is 0."""
    total = size.sum(dim=dim, keepdim=True)
    return size / total.masked_fill(total == 0, 1.0)


def _factor_diagonal(stats: LinearStats) -> torch.Tensor:
    """U_jj of H^-1 = U^T U for the damped Hessian H of the input, float32 [in]."""
    hessian = stats.hessian.clone()
    hessian.diagonal()[hessian.diagonal() == 0] = 1
    factor = inverse_factor(hessian, DAMPING)
    if factor is None:
        raise PrunebenchError(
            f"layer {stats.layer}: the Hessian of the input of {stats.name} is not positive"
            " definite",
            hint="calibrate on more windows, or choose `metric: wanda`",
        )
    return factor.diagonal().clone()
