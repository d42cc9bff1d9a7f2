"""The report while the run goes on: written again as cells finish, so seldom that it costs less than a hundredth of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

SHARE = 0.01
"""Of the run's time, the most that is spent on writing the report meanwhile."""
FIRST_S = 1.0
"""What the first writing is taken to cost."""


@dataclass
class LiveReport:
    """Calls ``write(running)`` between cells where the time for it is there; a report that cannot be made stops no run."""

    write: Callable[[bool], object]
    clock: Callable[[], float] = time.monotonic
    _begun: float = field(default=0.0, init=False)
    _spent: float = field(default=0.0, init=False)
    _last: float = field(default=FIRST_S, init=False)
    _written: bool = field(default=False, init=False)
    _broken: bool = field(default=False, init=False)

    def __enter__(self) -> Self:
        self._begun = self.clock()
        return self

    def cell_finished(self) -> None:
        """Write the report if it can be afforded by now."""
        now = self.clock()
        if self._broken or self._spent + self._last > SHARE * (now - self._begun):
            return
        try:
            self.write(True)
        except Exception:
            logging.getLogger("prunebench").exception(
                "the report could not be written while the run goes on"
            )
            self._broken = True
        self._written = True
        self._last = self.clock() - now
        self._spent += self._last

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """After an interruption the report must not say that the run goes on."""
        if kind is not None and self._written and not self._broken:
            self.write(False)
