"""Measure this machine's memory read bandwidth, by which the generation I/O floor is divided."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import psutil
import torch
from torch import Tensor

from prunebench.measure.devices.disturbance import Watch, undisturbed
from prunebench.measure.devices.watch import watch_of
from prunebench.measure.synchronise import synchroniser

COLUMNS = 4096
ROW_BYTES = 4 * COLUMNS
HOST_BYTES = 512 << 20
DEVICE_BYTES = 1 << 30
BUDGET_S = 0.3
"""For all timed passes of both kernels; filling the buffer takes about as long again."""
MIN_PASSES = 3
MAX_PASSES = 40


@torch.inference_mode()
def read_bandwidth(
    device: str | torch.device = "cpu", watch: Watch | None = None
) -> tuple[float, str]:
    """(bytes per second that a kernel reads from memory, how that was measured).

    The best pass of two kernels over one float32 matrix far larger than any last-level cache: its
    sum, and its product with a vector, which is what decoding does with the weights. Uses torch's
    current number of threads. The buffer is freed at the end. Raises DisturbedError if something
    else used the machine in every try, as ``watch`` tells (by default it watches ``device``).
    """
    where = torch.device(device)
    size = _buffer_bytes(where)
    watch = watch or watch_of(str(where))
    # `ones`, not `empty`: pages that were never written are not in memory and cost nothing to read.
    matrix = torch.ones(size // ROW_BYTES, COLUMNS, device=where)
    kernel, seconds = undisturbed(partial(_fastest, matrix), watch)
    del matrix
    if where.type == "cuda":
        torch.cuda.empty_cache()
        by = torch.cuda.get_device_name(where)
    else:
        by = f"{torch.get_num_threads()} threads"
    return size / seconds, f"measured: {kernel} over {size >> 20} MiB of float32, best pass, {by}"


def _fastest(matrix: Tensor) -> tuple[str, float]:
    """The best kernel's name and its seconds for one pass over ``matrix``, [rows, columns]."""
    vector = matrix.new_ones(matrix.shape[1])
    product = matrix.new_empty(len(matrix))
    wait = synchroniser(matrix.device.type)
    kernels: dict[str, Callable[[], Tensor]] = {
        "matrix-vector product": lambda: torch.mv(matrix, vector, out=product),
        "sum": matrix.sum,
    }
    seconds = {name: _best(kernel, wait) for name, kernel in kernels.items()}
    name = min(seconds, key=lambda kernel: seconds[kernel])
    return name, seconds[name]


def _best(kernel: Callable[[], Tensor], wait: Callable[[], None]) -> float:
    """Seconds of the fastest pass, without the first one, which warms up.

    The fastest, because other load on the machine can only slow a pass down.
    """
    kernel()
    wait()
    start = time.perf_counter()
    best = float("inf")
    for done in range(MAX_PASSES):
        before = time.perf_counter()
        if done >= MIN_PASSES and before - start > BUDGET_S / 2:
            break
        kernel()
        wait()
        best = min(best, time.perf_counter() - before)
    return best


def _buffer_bytes(device: torch.device) -> int:
    """Whole rows: the wanted size, or at most a quarter of the free memory (but 64 MiB)."""
    if device.type == "cuda":
        wanted, free = DEVICE_BYTES, torch.cuda.mem_get_info(device)[0]
    else:
        wanted, free = HOST_BYTES, psutil.virtual_memory().available
    return max(min(wanted, free // 4), 64 << 20) // ROW_BYTES * ROW_BYTES
