"""A display that fails is switched off, and the run goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from prunebench.app.careful_display import careful
from small_records import cell, record


class Breaking:
    """Fails when ``step`` comes, and counts its calls."""

    def __init__(self, step: str, error: BaseException) -> None:
        self.step = step
        self.error = error
        self.calls: list[str] = []

    def _call(self, step: str) -> None:
        self.calls.append(step)
        if step == self.step:
            raise self.error

    @contextmanager
    def begin(self) -> Iterator[Any]:
        self._call("begin")
        yield self
        self._call("end")

    def started(self, cell: Any) -> None:
        self._call("started")

    def moved(self, cell: Any, event: Any) -> None:
        self._call("moved")

    def finished(self, record: Any) -> None:
        self._call("finished")


STEPS = ["begin", "started", "moved", "finished", "end"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "error",
    [UnicodeEncodeError("ascii", "…", 0, 1, "no"), BrokenPipeError(), SystemExit(1), ValueError()],
    ids=lambda error: type(error).__name__,
)
def test_whatever_fails_the_block_goes_on(step: str, error: BaseException) -> None:
    display = Breaking(step, error)
    one = cell()
    with careful(display.begin) as watcher:
        watcher.started(one)
        watcher.moved(one, None)
        watcher.finished(record(one))
    # Nothing is shown after the failure, except that the display is closed.
    shown = STEPS[: STEPS.index(step) + 1]
    assert display.calls in (shown, [*shown, "end"])
    assert ("end" in display.calls) == (step != "begin")


def test_an_interruption_is_no_failure_of_the_display() -> None:
    display = Breaking("started", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt), careful(display.begin) as watcher:
        watcher.started(cell())
    assert display.calls == ["begin", "started", "end"]
