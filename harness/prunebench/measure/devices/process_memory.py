"""The memory of this process, read by itself. Bytes; None is "not available"."""

from __future__ import annotations

import sys
from typing import Any

import psutil


def rss_bytes() -> int | None:
    """Resident set of this process, without its children."""
    try:
        return int(psutil.Process().memory_info().rss)
    except psutil.Error:
        return None


def uss_bytes() -> int | None:
    """Unique set size of this process: the memory that would be free if it ended."""
    try:
        return int(getattr(psutil.Process().memory_full_info(), "uss", 0)) or None
    except (psutil.Error, OSError, AttributeError):
        return None


def max_rss_bytes() -> int | None:
    """The highest resident set since this process began, by getrusage."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts in bytes, Linux in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def allocator_peaks() -> tuple[int, int] | None:
    """(bytes allocated, bytes reserved): peaks of torch's CUDA allocator since the last call.

    None if this process has not used CUDA. Sums over all GPUs.
    """
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    allocated = reserved = 0
    for device in range(torch.cuda.device_count()):
        allocated += torch.cuda.max_memory_allocated(device)
        reserved += torch.cuda.max_memory_reserved(device)
        torch.cuda.reset_peak_memory_stats(device)
    return allocated, reserved
