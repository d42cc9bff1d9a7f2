"""Python's garbage collector, kept out of work that it would slow down or distort."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep the garbage collector out of the block, or of the function that this decorates.

    What reads thousands of records makes objects that stay, and the collector walks through all of
    them again and again: two fifths of the time of a report of 1,000 cells.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            # To the oldest generation, where the collector rarely looks: otherwise it would walk
            # through all that the block made as soon as it is enabled.
            if not gc.get_freeze_count():
                gc.freeze()
                gc.unfreeze()
            gc.enable()
