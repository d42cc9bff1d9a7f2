"""Count zeros and N:M violations in the weights of one decoder layer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from prunebench.errors import PrunebenchError

_EXPERT = re.compile(r"(\bexperts\.)\d+(?=\.)")


@dataclass(frozen=True)
class LayerCount:
    """Counts of the linears of one layer, by name.

    The same linear of all routed experts counts as one: 'mlp.experts.*.up_proj', with their rows.
    """

    shapes: Mapping[str, tuple[int, int]]
    zeros: Mapping[str, int]
    groups: Mapping[tuple[int, int], int]
    """Number of groups by pattern (keep, of)."""
    violations: Mapping[tuple[int, int], int]
    """Number of groups with more than ``keep`` non-zeros, by pattern."""
    experts: int = 0
    """Routed experts."""

    @property
    def of_experts(self) -> tuple[int, int]:
        """(weights, zeros) of the routed experts."""
        names = [name for name in self.shapes if "experts.*." in name]
        weights = sum(self.shapes[name][0] * self.shapes[name][1] for name in names)
        return weights, sum(self.zeros[name] for name in names)


def counted_name(name: str) -> str:
    """The name under which a linear is counted: an expert's with a '*' for the expert."""
    return _EXPERT.sub(r"\1*", name)


@torch.no_grad()
def count_layer(
    linears: Mapping[str, Any], layer: int, patterns: Sequence[tuple[int, int]] = ()
) -> LayerCount:
    """Count the ``linears`` of a layer, whose index in the dense model is ``layer``.

    ``patterns`` are as for `audit`. Raises PrunebenchError if a weight is not finite.
    """
    shapes: dict[str, tuple[int, int]] = {}
    zeros: Counter[str] = Counter()
    experts: set[str] = set()
    groups, violations = dict.fromkeys(patterns, 0), dict.fromkeys(patterns, 0)
    for name, linear in linears.items():
        _check_finite(linear.weight, name, layer)
        # [out, in], True for a non-zero weight. Counting in bools is many times faster than floats.
        kept = linear.weight.bool()
        rows, columns = kept.shape
        if found := _EXPERT.search(name):
            experts.add(name[: found.end()])
        joined = counted_name(name)
        shapes[joined] = shapes.get(joined, (0, 0))[0] + rows, columns
        zeros[joined] += kept.numel() - int(torch.count_nonzero(kept))
        for pattern in patterns:
            checked = nm_violations(kept, *pattern)
            groups[pattern] += checked[0]
            violations[pattern] += checked[1]
    return LayerCount(shapes, zeros, groups, violations, len(experts))


def nm_violations(kept: Tensor, keep: int, of: int) -> tuple[int, int]:
    """(groups, groups with more than ``keep`` non-zeros) of a bool mask ``kept``, [out, in].

    A group is ``of`` consecutive inputs of one output, counted from the start of the row, as in the
    format of the sparse tensor cores. If a row does not divide evenly, its last group is shorter,
    as if it were filled up with zeros.
    """
    columns = kept.shape[1]
    if columns % of:
        kept = F.pad(kept, (0, of - columns % of))
    count = torch.uint8 if of < 256 else torch.int32  # the smallest type that holds a group's sum
    filled = kept.reshape(-1, of).sum(1, dtype=count)  # [groups]
    return filled.numel(), int(torch.count_nonzero(filled > keep))


def _check_finite(weight: Tensor, name: str, layer: int) -> None:
    if not weight.numel():
        return
    # One pass without a temporary tensor: a NaN or infinity shows in the extremes. If only their
    # difference overflows, look again at every weight.
    low, high = torch.aminmax(weight)
    if not torch.isfinite(high - low) and not bool(torch.isfinite(weight).all()):
        raise PrunebenchError(
            f"layer {layer}, {name}: some weights are not finite",
            hint="the method divides by zero or overflows there; try it in float32",
        )
