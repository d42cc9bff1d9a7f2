"""What transformers' tensor-parallel plan says about the linears of a sub-block.

The plan splits a model over devices by heads and channels, so it says which linears have rows of
them (colwise) and which have columns (rowwise). It is a second guess, after the rules.
"""

from __future__ import annotations

from typing import Any

import torch

from prunebench.model.coupling.slices import is_linear
from prunebench.model.coupling.sub_block import Cut, SubBlock
from prunebench.model.coupling.trace import is_at

_INTO = {"colwise": 1, "colwise_rep": 1, "packed_colwise": 2}


def plan_cuts(block: SubBlock, layer: torch.nn.Module, config: Any) -> tuple[Cut, ...] | None:
    """The cuts of a sub-block by the plan in ``config``; None if it says nothing or too much."""
    into: list[Cut] = []
    out: list[Cut] = []
    for path, style in (getattr(config, "base_model_tp_plan", None) or {}).items():
        name = path.partition(".*.")[2]
        if not any(is_at(name, module) for module in block.modules):
            continue
        try:
            if not is_linear(layer.get_submodule(name)):
                continue
        except AttributeError:  # of other layers
            continue
        if style in _INTO:
            into.append(Cut(name, 0, _INTO[style]))  # type: ignore[arg-type]
        elif style == "rowwise":
            out.append(Cut(name, 1))
    return (*into, *out) if into and len(out) == 1 else None
