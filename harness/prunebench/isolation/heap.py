"""The C library's heap: keep the memory of freed tensors for the next ones, or give it back.

By default glibc returns memory to the system as soon as a few freed tensors lie at the end of its
heap, and asks for it again a moment later. The system then has to clear every page anew: of pruning
on batches of 1024 tokens that was a sixth of the time.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of `mallopt`'s options in malloc.h
KEPT_BYTES = 1 << 30
"""Freed memory that stays, and the size of a block that the system lends and gets back directly."""
OF_THE_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
"""Variables with which a user decides instead."""


def keep_freed_memory() -> None:
    """Let this process keep the memory of tensors that it frees, until `release_freed_memory`.

    Nothing happens without glibc, or if the user has decided by one of `OF_THE_USER`.
    """
    option = _of_glibc("mallopt")
    if option is not None and not any(name in os.environ for name in OF_THE_USER):
        option(_TRIM_THRESHOLD, KEPT_BYTES)
        option(_MMAP_THRESHOLD, KEPT_BYTES)


def release_freed_memory() -> None:
    """Return the memory of freed tensors to the system, as far as the C library can."""
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_glibc(name: str) -> Any:
    """The function of this name; None if the C library is another one."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
