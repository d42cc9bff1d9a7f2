"""One run at a time in a run folder, and what a run that was killed left behind.

The kernel's lock (flock) tells runs of one machine apart and goes with the process, however it ends. Between machines it
holds where the file system carries it: Linux does for NFS since 2.6.12 unless mounted with `nolock`. Where it may not,
the lock file helps: who holds it touches it every few seconds, and a file of another machine that was touched lately
counts as held. Clocks of machines may differ, so ages are taken by the file system's own clock.
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
from datetime import UTC, datetime
from pathlib import Path

from prunebench.errors import PrunebenchError
from prunebench.isolation.processes import end_marked

NAME = ".lock"
TOUCH_EVERY_S = 5.0
STALE_AFTER_S = 30.0
SCRATCH_PREFIX = "prunebench-"
"""How the temporary folders of cells begin; eight digits of the run's mark follow."""


@dataclass(frozen=True)
class Owner:
    """The run that holds a folder; ``mark`` is what its processes carry, see `prunebench.isolation.processes`."""

    pid: int
    host: str
    started: str
    mark: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.started}"


@contextmanager
def hold(folder: Path, mark: str = "") -> Iterator[Owner | None]:
    """Hold ``folder`` while the context is open; gives the killed run whose place was taken, None where there was none.

    What is left of its processes and temporary files on this machine is removed. Raises PrunebenchError where another
    run holds the folder, or it cannot be written.
    """
    path = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        hint = "choose another folder with --out"
        raise PrunebenchError(
            f"cannot write to {folder}: {error.strerror or error}", hint=hint
        ) from error
    with file:
        kernel = _lock(file.fileno(), path)
        former = _owner(path)
        if former is not None:
            if not kernel or former.host != platform.node():
                _refuse_if_alive(path, former)
            _clean_up_after(former)
        owner = Owner(
            os.getpid(), platform.node(), datetime.now(UTC).isoformat(timespec="seconds"), mark
        )
        _write(file.fileno(), json.dumps(asdict(owner)) + "\n")
        over = threading.Event()
        beat = threading.Thread(
            target=_touch, args=(path, over), name="prunebench-lock", daemon=True
        )
        beat.start()
        try:
            yield former
        finally:
            over.set()
            beat.join()
            with suppress(OSError):
                os.ftruncate(file.fileno(), 0)


def _lock(descriptor: int, path: Path) -> bool:
    """Whether the kernel's lock was taken; False where the file system has none."""
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
    """Raise where the run of another machine has touched its lock lately."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".now-") as probe:
        age = os.fstat(probe.fileno()).st_mtime - path.stat().st_mtime
    if age < STALE_AFTER_S:
        raise _held(
            path,
            former,
            f", its lock was renewed {max(age, 0.0):.0f} s ago; it counts as dead after {STALE_AFTER_S:g} s",
        )


def _owner(path: Path) -> Owner | None:
    """Who wrote the lock file; None where it is empty or half written."""
    try:
        return Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def clean_up(mark: str) -> None:
    """Remove what a run that carried ``mark`` has left on this machine: processes and temporary files."""
    end_marked(mark, kin=True)
    for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH_PREFIX}{mark[:8]}-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _clean_up_after(former: Owner) -> None:
    if former.mark and former.host == platform.node():
        clean_up(former.mark)


def _write(descriptor: int, text: str) -> None:
    with suppress(OSError):  # a full disk: the kernel's lock holds without it
        os.ftruncate(descriptor, 0)
        os.write(descriptor, text.encode())
        os.fsync(descriptor)


def _touch(path: Path, over: threading.Event) -> None:
    while not over.wait(TOUCH_EVERY_S):
        with suppress(OSError):
            os.utime(path)
