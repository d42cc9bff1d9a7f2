"""Other libraries' talk: their bars and warnings would fill a cell's log."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, no log lines below errors, no Python warnings inside; everything as before afterwards."""
    import huggingface_hub.utils
    from transformers.utils import logging

    hub: Any = huggingface_hub.utils
    bars, level, hub_silent = (
        logging.is_progress_bar_enabled(),
        logging.get_verbosity(),
        hub.are_progress_bars_disabled(),
    )
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
        (
            hub.disable_progress_bars if hub_silent else hub.enable_progress_bars
        )()  # transformers switches both
