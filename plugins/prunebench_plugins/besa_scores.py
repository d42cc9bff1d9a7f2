"""The scores by which BESA ranks weights, and what each has to know of a linear's input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from prunebench import LinearMethod, PrunebenchError
from prunebench_plugins.magnitude import Magnitude
from prunebench_plugins.ria import RIA
from prunebench_plugins.sparsegpt import inverse_factor
from prunebench_plugins.wanda import Wanda

if TYPE_CHECKING:
    from prunebench import LayerTraining, LinearStats

DAMPING = 0.01
METHODS: Mapping[str, type[LinearMethod]] = {"magnitude": Magnitude, "wanda": Wanda, "ria": RIA}
"""Methods whose own score is used, with their default options."""
STATISTICS: Mapping[str, frozenset[Any]] = {
    **{name: method.statistics for name, method in METHODS.items()},
    "sparsegpt": frozenset({"hessian"}),
    "sparsegpt-released": frozenset({"hessian"}),
}
"""The statistics that each score needs."""


def scores_of(metric: str, layer: LayerTraining) -> dict[str, torch.Tensor]:
    """The score of every weight of a layer, float32 [out, in], by linear; low ones go first."""
    of = {
        name: (linear.weight.detach(), layer.stats[name]) for name, linear in layer.linears.items()
    }
    if metric in METHODS:
        kind = METHODS[metric]
        score = kind(kind.Options()).score
        return {name: score(weight, stats) for name, (weight, stats) in of.items()}
    power = 2 if metric == "sparsegpt" else 1
    diagonals: dict[int, torch.Tensor] = {}
    found = {}
    for name, (weight, stats) in of.items():
        # Linears that read one input share its Hessian, so its factor as well.
        key = id(stats.hessian)
        if key not in diagonals:
            diagonals[key] = _factor_diagonal(stats)
        found[name] = weight.float().square() / diagonals[key] ** power
        # Inputs that are always zero need no weight.
        found[name][:, stats.hessian.diagonal() == 0] = 0
    return found


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
