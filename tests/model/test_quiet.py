"""Other libraries are silent inside a block and as before outside, whatever threads do."""

from __future__ import annotations

import threading
import warnings

import pytest
from huggingface_hub.utils import are_progress_bars_disabled
from transformers.utils import logging

from prunebench.model.quiet import quiet


def state() -> tuple[object, ...]:
    bars = logging.is_progress_bar_enabled(), are_progress_bars_disabled()
    return logging.get_verbosity(), *bars, list(warnings.filters)


def test_blocks_of_threads_that_overlap_leave_everything_as_it_was() -> None:
    before = state()
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with quiet():
            entered.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with quiet():
        thread.start()
        entered.wait()
        assert logging.get_verbosity() == logging.ERROR
    # The other thread is still inside, and entered later.
    assert logging.get_verbosity() == logging.ERROR
    leave.set()
    thread.join()
    assert state() == before


def test_a_block_that_raises_restores_too() -> None:
    before = state()
    with pytest.raises(KeyError), quiet(), quiet():
        raise KeyError
    assert state() == before
