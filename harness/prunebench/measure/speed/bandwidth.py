"""The memory read bandwidth of this machine, measured: what the generation I/O floor is divided by."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil
import torch
from torch import Tensor

COLUMNS = 4096
ROW_BYTES = 4 * COLUMNS
HOST_BYTES = 512 << 20
DEVICE_BYTES = 1 << 30
BUDGET_S = 0.3
"""For each kernel's passes, after the first one; filling the buffer takes about as long again."""
MIN_PASSES = 3
MAX_PASSES = 40


@torch.inference_mode()
def read_bandwidth(device: str | torch.device = "cpu") -> tuple[float, str]:
    """Bytes per second that a kernel reads from memory with the current thread count, and how that was measured.

    The best pass of two kernels over one float32 matrix far larger than any last-level cache: its sum, and its product
    with a vector, which is what decoding does with the weights. The buffer is given back at the end.
    """
    where = torch.device(device)
    size = _buffer_bytes(where)
    kernel, seconds = _fastest(size, where)
    if where.type == "cuda":
        torch.cuda.empty_cache()
        by = torch.cuda.get_device_name(where)
    else:
        by = f"{torch.get_num_threads()} threads"
    return size / seconds, f"measured: {kernel} over {size >> 20} MiB of float32, best pass, {by}"


def _fastest(size: int, where: torch.device) -> tuple[str, float]:
    """The best kernel's name and its seconds for one pass over ``size`` bytes."""
    matrix = torch.ones(
        size // ROW_BYTES, COLUMNS, device=where
    )  # written: untouched pages are not in memory
    vector = torch.ones(COLUMNS, device=where)
    product = torch.empty(len(matrix), device=where)
    synchronise = torch.cuda.synchronize if where.type == "cuda" else _nothing
    kernels: dict[str, Callable[[], Tensor]] = {
        "matrix-vector product": lambda: torch.mv(matrix, vector, out=product),
        "sum": matrix.sum,
    }
    seconds = {name: _best(kernel, synchronise) for name, kernel in kernels.items()}
    name = min(seconds, key=lambda kernel: seconds[kernel])
    return name, seconds[name]


def _best(kernel: Callable[[], Tensor], synchronise: Callable[[], None]) -> float:
    """Seconds of the fastest pass, the first one left out."""
    kernel()
    synchronise()
    start = time.perf_counter()
    best = float("inf")
    for done in range(MAX_PASSES):
        before = time.perf_counter()
        if done >= MIN_PASSES and before - start > BUDGET_S / 2:
            break
        kernel()
        synchronise()
        best = min(best, time.perf_counter() - before)
    return best


def _buffer_bytes(device: torch.device) -> int:
    """The wanted size, less on a machine that is nearly full; whole rows."""
    if device.type == "cuda":
        wanted, free = DEVICE_BYTES, torch.cuda.mem_get_info(device)[0]
    else:
        wanted, free = HOST_BYTES, psutil.virtual_memory().available
    return max(min(wanted, free // 4), 64 << 20) // ROW_BYTES * ROW_BYTES


def _nothing() -> None:
    """The CPU has finished when a call returns."""
