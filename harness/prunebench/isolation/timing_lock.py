"""Run timed phases alone while the other phases of cells on the same machine overlap.

A readers-writer lock made of two files that the kernel locks (flock):

- `exclusive`: a timed phase locks it alone, every other phase shares it.
- `queue`: whoever wants `exclusive` locks this first and releases it once it has `exclusive`.
  A timed phase that waits keeps newcomers waiting behind it, so it waits only for phases that
  already run and cannot starve.

The order is always `queue`, then `exclusive`. The kernel releases both when a process ends,
however it ends. All runs of a user on a machine use the same two files.
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

from prunebench.callbacks import ignore
from prunebench.errors import PrunebenchError

VARIABLE = "PRUNEBENCH_TIMING_LOCK"
"""Names the folder of the two files if several cells may run at once; unset or empty otherwise."""
POLL_S = 0.05
WAITING = "waiting for its turn"
"""The phase that a cell reports while it waits; its time limit does not count that time."""
TIMED = (
    "load",
    "runtimes",
    "weights",
    "generate",
    "bandwidth",
    "latency",
    "energy",
    "2:4 kernels",
)
"""The phases whose times are figures of the record, and `weights`, which moves what they read."""


def lock_folder() -> Path:
    """The folder of this machine's two files."""
    return Path(tempfile.gettempdir()) / f"prunebench-timing-{os.getuid()}"


class TimingLock:
    """One cell's hold on the lock; ``waiting`` is called each time that it has to wait.

    Without a ``folder`` nothing is locked. Raises PrunebenchError if the folder cannot be used.
    """

    def __init__(self, folder: Path | None, waiting: Callable[[], None] = ignore) -> None:
        self._waiting = waiting
        self._held = fcntl.LOCK_UN
        self._files: tuple[int, ...] = ()
        if folder is not None:
            try:
                # The folder lies in a temporary directory that everybody can write to: keep other
                # users out of it, and do not follow links that they may have put there.
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._files = tuple(
                    os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
                    for name in ("queue", "exclusive")
                )
            except OSError as error:
                raise PrunebenchError(
                    f"cells cannot take turns with {folder}: {error.strerror or error}",
                    hint="remove it, or set TMPDIR to another folder",
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
    def from_environment(cls, waiting: Callable[[str], None]) -> TimingLock:
        """The lock that the environment names; ``waiting`` gets the name of the waiting phase."""
        named = os.environ.get(VARIABLE)
        return cls(Path(named) if named else None, lambda: waiting(WAITING))

    def enter_phase(self, phase: str) -> None:
        """End the phase before, and return when ``phase`` may begin."""
        how = fcntl.LOCK_EX if phase in TIMED else fcntl.LOCK_SH
        # From one timed phase to the next the lock is kept, so that nobody comes in between.
        if not self._files or how == self._held == fcntl.LOCK_EX:
            return
        # Release before blocking: two waiters that each hold a lock would deadlock.
        self.release()
        queue, exclusive = self._files
        told = False
        for file, kind in ((queue, fcntl.LOCK_EX), (exclusive, how)):
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                if not told:
                    self._waiting()
                    told = True
                fcntl.flock(file, kind)
        fcntl.flock(queue, fcntl.LOCK_UN)
        self._held = how

    def try_share(self) -> bool:
        """Share the lock unless a timed phase runs or waits; never blocks."""
        if not self._files:
            return True
        queue, exclusive = self._files
        try:
            fcntl.flock(queue, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                fcntl.flock(exclusive, fcntl.LOCK_SH | fcntl.LOCK_NB)
            finally:
                fcntl.flock(queue, fcntl.LOCK_UN)
        except BlockingIOError:
            return False
        self._held = fcntl.LOCK_SH
        return True

    def share(self, tick: Callable[[], None]) -> None:
        """Share the lock as soon as possible; ``tick`` is called meanwhile and may raise."""
        # Polls rather than blocks, so that a thread that waits notices when the run is over.
        while not self.try_share():
            tick()
            time.sleep(POLL_S)

    def release(self) -> None:
        """Let others in, between two phases or after the last."""
        if self._files:
            fcntl.flock(self._files[1], fcntl.LOCK_UN)
        self._held = fcntl.LOCK_UN

    def close(self) -> None:
        """Release for good; afterwards nothing is locked any more."""
        for file in self._files:
            os.close(file)
        self._files = ()
