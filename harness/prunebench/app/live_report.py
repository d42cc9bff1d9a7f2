"""The report while a run goes on, written between cells in at most a hundredth of its time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

SHARE = 0.01
"""The largest share of a run's time that goes into writing the report meanwhile."""
FIRST_S = 1.0
"""How long the first writing is assumed to take."""


@dataclass
class LiveReport:
    """Calls ``write(running)`` between cells when it can be afforded.

    A report that cannot be written is logged and stops no run.
    """

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
        """Write the report if that is affordable by now."""
        now = self.clock()
        # Writing is expected to take as long as the last time: a report grows slowly.
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
        """After an interruption, write it once more: it must not say that the run goes on."""
        if kind is not None and self._written and not self._broken:
            self.write(False)
