"""Compare a method with random pruning of as many weights: a hint that its scores are inverted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from prunebench.measure.weight_counts import counted_name
from prunebench.model.anatomy import anatomy
from prunebench.testing.promises import Promise, promise

if TYPE_CHECKING:
    from prunebench.testing.trial import MethodTrial, Pruned

SEEDS = 3
FEW = 0.1
MARGIN = 1.25
"""A method is worse if its error is that many times the mean error of random pruning."""


def _check(trial: MethodTrial) -> None:
    """Raise BrokenPromiseError if the trial's zeros are much worse than random ones.

    The error is |logits - dense logits| / |dense logits| on the calibration tokens. The random
    zeros are as many in each linear.
    """
    few: dict[str, Any] = {"sparsity": FEW}
    # More zeros change the logits of a small model almost as much as can be, whatever they are.
    takes = "sparsity" in trial.plugin.Options.model_fields and trial.takes(**few)
    pruned = trial.prune(**few) if takes else trial.pruned
    found = pruned.audit()
    if found.parameters != found.parameters_dense or found.zeros <= found.zeros_dense:
        return
    dense = trial.dense_logits()
    error = _error(pruned.logits(), dense)
    random = (
        sum(_error(_random_logits(trial, pruned, seed), dense) for seed in range(SEEDS)) / SEEDS
    )
    promise(
        error <= MARGIN * random,
        f"it changes the logits by {error:.0%}, and random pruning of as many weights by"
        f" {random:.0%}; the lowest scores are removed, and a mask is True for the weights to remove",
    )


def _random_logits(trial: MethodTrial, pruned: Pruned, seed: int) -> torch.Tensor:
    """Logits of the model with random zeros, as many as the method left in each linear."""
    model = trial.model()
    generator = torch.Generator().manual_seed(seed)
    parts = anatomy(model)
    for each in pruned.audit().linears:
        linears = parts.linears(parts.layers[each.layer]).items()
        # The same linear of all experts is counted as one.
        weights = [linear.weight for name, linear in linears if counted_name(name) == each.name]
        sizes = [weight.numel() for weight in weights]
        gone = torch.zeros(sum(sizes), dtype=torch.bool)
        gone[torch.randperm(len(gone), generator=generator)[: each.zeros]] = True
        for weight, mask in zip(weights, torch.split(gone, sizes), strict=True):
            weight.masked_fill_(mask.view_as(weight), 0)
    with torch.no_grad():
        logits: torch.Tensor = model(pruned.context.windows).logits
    return logits


def _error(logits: torch.Tensor, dense: torch.Tensor) -> float:
    return float((logits - dense).norm() / dense.norm())


WORSE = Promise("random", "is worse than random pruning: is something inverted?", _check)
