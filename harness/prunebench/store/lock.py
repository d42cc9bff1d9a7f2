"""Let one run at a time write to a run folder, and clean up after a run that was killed.

On one machine the kernel's lock (flock) decides; it is released when the process ends, however it
ends. Between machines it works only if the file system carries it: NFS on Linux does since 2.6.12,
unless it is mounted with `nolock`. Therefore the owner also touches the lock file every few
seconds, and a file that another machine touched lately counts as held. Ages are taken with the file
system's own clock, because the clocks of machines may differ.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from prunebench.errors import PrunebenchError
from prunebench.isolation.processes import end_marked
from prunebench.record.record import utc_now

NAME = ".lock"
TOUCH_EVERY_S = 5.0
# Several touches, so that a busy file server or a stopped process does not look dead at once.
STALE_AFTER_S = 30.0
SCRATCH_PREFIX = "prunebench-"
"""Names of the temporary folders of cells begin like this, followed by 8 characters of the mark."""


@dataclass(frozen=True)
class Owner:
    """The run that holds a folder; its processes carry ``mark``, see `isolation.processes`."""

    pid: int
    host: str
    started: str
    mark: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.started}"


@contextmanager
def hold(folder: Path, mark: str = "") -> Iterator[Owner | None]:
    """Hold ``folder`` while the context is open; gives the killed run that held it before, or None.

    Processes and temporary files that the killed run left on this machine are removed. Raises
    PrunebenchError if another run holds the folder, or if it cannot be written.
    """
    path = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Opened for appending: truncating it would erase the owner before we know who that is.
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        hint = "choose another folder with --out"
        raise PrunebenchError(
            f"cannot write to {folder}: {error.strerror or error}", hint=hint
        ) from error
    with file:
        locked = _lock(file.fileno(), path)
        # A run that ends well empties the file; an owner in it was killed, or still runs elsewhere.
        former = _owner(path)
        if former is not None:
            if not locked or former.host != platform.node():
                _refuse_if_alive(path, former)
            _clean_up_after(former)
        owner = Owner(os.getpid(), platform.node(), utc_now(), mark)
        _write(file.fileno(), json.dumps(asdict(owner)) + "\n")
        over = threading.Event()
        toucher = threading.Thread(
            target=_touch, args=(path, over), name="prunebench-lock", daemon=True
        )
        toucher.start()
        try:
            yield former
        finally:
            over.set()
            toucher.join()
            with suppress(OSError):
                os.ftruncate(file.fileno(), 0)


def _lock(descriptor: int, path: Path) -> bool:
    """Take the kernel's lock; False if the file system has none.

    Raises PrunebenchError if another process holds it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _held(path, _owner(path)) from error
    except OSError:
        return False
    return True


def _held(path: Path, owner: Owner | None, more: str = "") -> PrunebenchError:
    who = f" ({owner}{more})" if owner else ""
    return PrunebenchError(
        f"another run is writing to {path.parent}{who}",
        hint="wait for it, or choose another folder with --out",
    )


def _refuse_if_alive(path: Path, former: Owner) -> None:
    """Raise PrunebenchError if ``former``, on another machine, touched its lock lately."""
    # A new file has the file system's time, by whatever clock it goes.
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".now-") as probe:
        age = os.fstat(probe.fileno()).st_mtime - path.stat().st_mtime
    if age < STALE_AFTER_S:
        raise _held(
            path,
            former,
            f", its lock was renewed {max(age, 0.0):.0f} s ago; "
            f"it counts as dead after {STALE_AFTER_S:g} s",
        )


def _owner(path: Path) -> Owner | None:
    """Who wrote the lock file; None if it is empty or half written."""
    try:
        return Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def clean_up(mark: str) -> None:
    """Remove what a run with ``mark`` left on this machine: processes and temporary folders."""
    # Processes first: they might write to the folders again.
    end_marked(mark, kin=True)
    for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH_PREFIX}{mark[:8]}-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _clean_up_after(former: Owner) -> None:
    if former.mark and former.host == platform.node():
        clean_up(former.mark)


def _write(descriptor: int, text: str) -> None:
    # If the disk is full, the kernel's lock holds without an owner in the file.
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.write(descriptor, text.encode())
        os.fsync(descriptor)


def _touch(path: Path, over: threading.Event) -> None:
    while not over.wait(TOUCH_EVERY_S):
        with suppress(OSError):
            os.utime(path)
