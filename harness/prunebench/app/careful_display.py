"""Keep a run going when the display that shows it fails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from prunebench.cell.events import Event
    from prunebench.engine.session import Watcher
    from prunebench.experiment.cell import Cell
    from prunebench.record.record import Record

# rich ends the process when its pipe is closed.
FAILURES = (Exception, SystemExit)


@contextmanager
def careful(begin: Callable[[], AbstractContextManager[Watcher]]) -> Iterator[Watcher]:
    """What ``begin`` shows; a display that fails is logged and switched off.

    The terminal may be closed or full, or lack a sign. Results do not depend on it.
    """
    display = _CarefulWatcher()
    context: AbstractContextManager[Watcher] | None = None
    with display.switched_off_by_a_failure():
        context = begin()
        display.watcher = context.__enter__()
    try:
        yield display
    finally:
        if display.watcher is not None and context is not None:
            with display.switched_off_by_a_failure():
                context.__exit__(None, None, None)


@dataclass
class _CarefulWatcher:
    """Passes calls on to ``watcher`` until one fails."""

    watcher: Watcher | None = None
    failed: bool = False

    @contextmanager
    def switched_off_by_a_failure(self) -> Iterator[None]:
        try:
            yield
        except FAILURES:
            logging.getLogger("prunebench").debug("the display of the run failed", exc_info=True)
            self.failed = True

    def started(self, cell: Cell) -> None:
        self._tell(lambda watcher: watcher.started(cell))

    def moved(self, cell: Cell, event: Event) -> None:
        self._tell(lambda watcher: watcher.moved(cell, event))

    def finished(self, record: Record) -> None:
        self._tell(lambda watcher: watcher.finished(record))

    def _tell(self, what: Callable[[Watcher], None]) -> None:
        if self.watcher is not None and not self.failed:
            with self.switched_off_by_a_failure():
                what(self.watcher)
