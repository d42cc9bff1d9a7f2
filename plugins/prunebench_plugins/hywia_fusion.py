"""How HyWIA blends the coarse and the fine importance of a tensor's rows or columns."""

from __future__ import annotations

import math
from typing import Literal

import torch

Fusion = Literal["mean", "random-gate", "coarse", "fine", "attention"]
HIDDEN = 64
"""Neurons of the gate of the released code."""


def fused(
    coarse: torch.Tensor, fine: torch.Tensor, fusion: Fusion, generator: torch.Generator
) -> torch.Tensor:
    """The blend of a tensor's coarse and fine importance, float32 [rows or columns].

    It is a * fine + (1 - a) * coarse with a in [0, 1]. As coarse <= fine, it is between them.
    """
    if fusion == "mean":
        return (coarse + fine) / 2
    gate = random_gate if fusion == "random-gate" else attention
    weight = gate(coarse, fine, generator)
    return weight * fine + (1 - weight) * coarse


def random_gate(
    coarse: torch.Tensor, fine: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """sigmoid(w2 . relu(W1 [fine, coarse] + b1) + b2), with numbers that are drawn anew.

    As in the released code: W1 is [64, 2], and all numbers have the distribution that torch gives
    a new linear layer, in the order W1, b1, w2, b2. The network is never trained.
    """
    inputs = torch.stack([fine, coarse], dim=1)  # [rows or columns, 2]
    for size_in, size_out in ((2, HIDDEN), (HIDDEN, 1)):
        weight, bias = torch.empty(size_out, size_in), torch.empty(size_out)
        # On the CPU, so that the gates are the same on every device.
        torch.nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
        bound = 1 / math.sqrt(size_in)
        torch.nn.init.uniform_(bias, -bound, bound, generator=generator)
        inputs = torch.nn.functional.linear(inputs, weight.to(inputs), bias.to(inputs))
        inputs = inputs.relu() if size_out == HIDDEN else inputs.sigmoid()
    return inputs[:, 0]


def attention(coarse: torch.Tensor, fine: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The softmax weight of the fine importance against the coarse one.

    A reconstruction without parameters. Both are first standardised by their mean and deviation in
    the tensor, so that the size of the gradients does not matter: a row or column listens to the
    importance by which it stands out more.
    """
    del generator
    keys = torch.stack([_standardised(fine), _standardised(coarse)])  # [2, rows or columns]
    return keys.softmax(dim=0)[0]


def _standardised(values: torch.Tensor) -> torch.Tensor:
    """Mean 0 and deviation 1; all 0 if they are all equal."""
    spread = (values - values.mean()) / values.std(correction=0)
    return spread.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def draw_order(members: int) -> list[int]:
    """The order in which gates of a group's members are drawn.

    The released code follows the dependency graph of an attention from its keys, so that of query,
    key, value and output the order is key, output, value, query.
    """
    return [1, 3, 2, 0] if members == 4 else list(range(members))
