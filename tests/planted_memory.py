"""Memory that comes from the system and goes back to it, whatever the C library's heap holds."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def planted(size: int) -> Iterator[None]:
    """Hold ``size`` more bytes, in pages that are all written.

    A Python object could lie in a hole of the heap, which keeps its pages when the object is gone.
    """
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        for start in range(0, size, mmap.PAGESIZE):
            block[start] = 1
        yield
