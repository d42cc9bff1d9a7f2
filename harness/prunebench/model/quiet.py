"""Other libraries' talk: their bars and warnings would fill a cell's log, their errors run over many lines."""

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
        (hub.disable_progress_bars if hub_silent else hub.enable_progress_bars)()  # transformers switches both


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something, at most 200 characters of it; else its class."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= 200 else f"{line[:197]}..."
