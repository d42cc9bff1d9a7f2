"""The C library's heap: keep the memory of freed tensors for the next ones, or give it back.

By default glibc returns memory to the system as soon as a few freed tensors lie at the end of its
heap, and asks for it again a moment later. The system then has to clear every page anew: of pruning
on batches of 1024 tokens that was a sixth of the time.

Models that are timed should not lie in such memory: what other tensors left decides on which pages
they are. Of pairs of equal models in kept memory one was 0.4 % slower on average; each on pages of
its own they differed by 0.1 %.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of `mallopt`'s options in malloc.h
KEPT_BYTES = 1 << 30
"""Freed memory that stays."""
MAPPED_BYTES = 32 << 20
"""From this size on a block always comes from the system and goes back at once.

Older versions of glibc refuse more, and would map all blocks from `LEAST_BYTES` on.
"""
LEAST_BYTES = 128 << 10
"""Glibc's own limits before it adapts them to a program."""
OF_THE_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
"""Variables with which a user decides instead."""


def keep_freed_memory() -> None:
    """Let this process keep the memory of tensors that it frees, for those that come after.

    `release_freed_memory` returns what was freed so far, `give_tensors_pages` ends the keeping.
    Nothing happens without glibc, or if the user has decided by one of `OF_THE_USER`.
    """
    _set_limits(kept=KEPT_BYTES, mapped=MAPPED_BYTES)


def give_tensors_pages() -> None:
    """Let all but small tensors lie on pages of their own, which go back when the tensor does.

    It is the opposite of `keep_freed_memory`, and does nothing in the same cases.
    """
    _set_limits(kept=LEAST_BYTES, mapped=LEAST_BYTES)


def release_freed_memory() -> None:
    """Return the memory of freed tensors to the system, as far as the C library can."""
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _set_limits(*, kept: int, mapped: int) -> None:
    option = _of_glibc("mallopt")
    if option is not None and not any(name in os.environ for name in OF_THE_USER):
        option(_TRIM_THRESHOLD, kept)
        option(_MMAP_THRESHOLD, mapped)


def _of_glibc(name: str) -> Any:
    """The function of this name; None if the C library is another one."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
