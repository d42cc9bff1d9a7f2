"""Cells that share a machine take turns: what is timed runs alone, the rest side by side.

A lock for readers and writers out of two locked files: timed phases hold the room alone, the others share it. Who waits
for the room holds the gate, so that nobody slips past; so a timed phase waits for the running phases of others only.
The kernel frees both when a process ends, however it ends. All runs of a user on a machine share them.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from prunebench.errors import PrunebenchError

VARIABLE = "PRUNEBENCH_TURNS"
"""Names the folder with the two files, where there may be several cells at once; absent or empty: there is one."""
POLL_S = 0.05
WAITING = "waiting for its turn"
"""The phase between phases; no time limit counts it."""
TIMED = ("load", "generate", "bandwidth", "latency", "energy", "2:4 kernels")
"""Phases whose times are figures of the record."""


def lock_folder() -> Path:
    """Where this machine's two files lie."""
    return Path(tempfile.gettempdir()) / f"prunebench-turns-{os.getuid()}"


class TimingLock:
    """A cell's place in the order; ``waiting`` is called once each time it has to wait.

    Raises PrunebenchError where ``folder`` cannot be used; None makes everything free.
    """

    def __init__(self, folder: Path | None, waiting: Callable[[], None] = lambda: None) -> None:
        self._waiting = waiting
        self._held = fcntl.LOCK_UN
        self._files: tuple[int, ...] = ()
        if folder is not None:
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._files = tuple(
                    os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
                    for name in ("gate", "room")
                )
            except OSError as error:
                raise PrunebenchError(
                    f"cells cannot take turns by {folder}: {error.strerror or error}",
                    hint="remove it, or let TMPDIR name another folder",
                ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @classmethod
    def of_this_process(cls, waiting: Callable[[str], None]) -> TimingLock:
        """As the environment says; ``waiting`` is told the phase's name."""
        named = os.environ.get(VARIABLE)
        return cls(Path(named) if named else None, lambda: waiting(WAITING))

    def take(self, phase: str) -> None:
        """Come back when ``phase`` may begin; the phase before has ended."""
        how = fcntl.LOCK_EX if phase in TIMED else fcntl.LOCK_SH
        if not self._files or how == self._held == fcntl.LOCK_EX:
            return
        self.leave()  # who waits holds nothing: two that wait for each other to leave would wait for ever
        gate, room = self._files
        told = False
        for file, kind in ((gate, fcntl.LOCK_EX), (room, how)):
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                if not told:
                    self._waiting()
                    told = True
                fcntl.flock(file, kind)
        fcntl.flock(gate, fcntl.LOCK_UN)
        self._held = how

    def free(self) -> bool:
        """Share the room if nobody is timed or about to be; never waits."""
        if not self._files:
            return True
        gate, room = self._files
        try:
            fcntl.flock(gate, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                fcntl.flock(room, fcntl.LOCK_SH | fcntl.LOCK_NB)
            finally:
                fcntl.flock(gate, fcntl.LOCK_UN)
        except BlockingIOError:
            return False
        self._held = fcntl.LOCK_SH
        return True

    def share(self, tick: Callable[[], None]) -> None:
        """Share the room as soon as that may be, calling ``tick`` meanwhile, which may give up by raising."""
        while not self.free():
            tick()
            time.sleep(POLL_S)

    def leave(self) -> None:
        """Between two phases, and after the last."""
        if self._files:
            fcntl.flock(self._files[1], fcntl.LOCK_UN)
        self._held = fcntl.LOCK_UN

    def close(self) -> None:
        """Leave for good."""
        for file in self._files:
            os.close(file)
        self._files = ()
