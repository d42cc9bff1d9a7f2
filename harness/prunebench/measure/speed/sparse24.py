"""Convert 2:4 weights to the format of the sparse tensor cores (`to_sparse_semi_structured`).

NVIDIA GPUs from compute capability 8.0 on multiply such a matrix while reading half the weight
bytes (Mishra et al. 2021, arXiv 2104.08378). A method leaves its zeros in dense tensors; this
converts them in place, so that both can be timed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from prunebench.model.anatomy import anatomy
from prunebench.record.audit import Audit

LABEL = "2:4 kernels"
LEAST_CAPABILITY = (8, 0)
_DTYPES = (torch.float16, torch.bfloat16)
_ROWS, _COLUMNS = 32, 64
"""Tile of the kernels: a matrix whose sizes are not multiples of these stays dense."""


def applies(audited: Audit) -> bool:
    """Whether every prunable matrix keeps at most two of four weights, and pruning made zeros."""
    legal = any(each.pattern == "2:4" and not each.violations for each in audited.patterns)
    return legal and audited.zeros > audited.zeros_dense


def unsupported(model: Any) -> str | None:
    """Why the device or the dtype of the weights cannot use the format; None if they can."""
    weight = anatomy(model).embeddings.weight
    if weight.device.type != "cuda":
        return "needs a CUDA GPU"
    if torch.cuda.get_device_capability(weight.device) < LEAST_CAPABILITY:
        return f"{torch.cuda.get_device_name(weight.device)} has no sparse tensor cores"
    if weight.dtype not in _DTYPES:
        return f"needs float16 or bfloat16 weights, not {str(weight.dtype).removeprefix('torch.')}"
    return None


@torch.no_grad()
def convert(model: Any) -> tuple[int, int]:
    """Compress the weights of the prunable linears in place.

    Returns (linears that were converted, linears in all); sizes that do not fit stay dense.
    """
    parts = anatomy(model)
    linears = [linear for layer in parts.layers for linear in parts.linears(layer).values()]
    fitting = [
        each
        for each in linears
        if each.out_features % _ROWS == 0 and each.in_features % _COLUMNS == 0
    ]
    for linear in fitting:
        # The kernel that compresses needs rows in order, so a view of another layout is copied.
        dense = linear.weight.data.contiguous()
        linear.weight = nn.Parameter(
            torch.sparse.to_sparse_semi_structured(dense), requires_grad=False
        )
    return len(fitting), len(linears)
