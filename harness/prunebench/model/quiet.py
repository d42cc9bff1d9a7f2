"""Silence other libraries: their progress bars and warnings would fill a cell's log."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator
from typing import Any

_lock = threading.Lock()
_inside: list[None] = []
"""One entry for each block that is entered now."""
_silence = contextlib.ExitStack()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, no logging below errors and no Python warnings in the block.

    Threads share these settings, so they change when the first thread enters a block and return
    when the last one leaves.
    """
    with _lock:
        if not _inside:
            _silence.enter_context(_silenced())
        _inside.append(None)
    try:
        yield
    finally:
        with _lock:
            _inside.pop()
            if not _inside:
                _silence.close()


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    import huggingface_hub.utils
    from transformers.utils import logging

    hub: Any = huggingface_hub.utils
    bars = logging.is_progress_bar_enabled()
    hub_bars = not hub.are_progress_bars_disabled()
    level = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
        # transformers' switch turns the hub's bars on or off as well, so restore those last.
        if hub_bars:
            hub.enable_progress_bars()
        else:
            hub.disable_progress_bars()
