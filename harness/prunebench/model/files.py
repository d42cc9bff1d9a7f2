"""Write files and folders so that readers never see half of one, and lock out other writers."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from prunebench.errors import PrunebenchError


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError raised while ``path`` is written into a PrunebenchError with a hint."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            hint = "free some space, or set PRUNEBENCH_CACHE to a folder on another disk"
        else:
            hint = "check that the folder exists and may be written"
        raise PrunebenchError(
            f"cannot write {path}: {error.strerror or error}", hint=hint
        ) from error


@contextlib.contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside ``target``, removed when the block ends.

    It is beside ``target`` so that both are on one disk, because only then is a rename atomic.
    """
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".tmp-{target.name}-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def atomic_replace(target: Path) -> Iterator[Path]:
    """Give a path to write a file or folder to; it replaces ``target`` if the block succeeds.

    Raises PrunebenchError if the disk is full or ``target`` is not writable. After any exception
    ``target`` is unchanged.
    """
    with scratch_folder(target) as folder, disk_errors(target):
        aside = folder / target.name
        yield aside
        move_over(aside, target)


def move_over(aside: Path, target: Path) -> None:
    """Rename ``aside`` to ``target``; ``aside`` must be in a `scratch_folder` of ``target``."""
    if target.is_dir():
        # rename(2) does not replace a folder that has files in it, so move the old one out first.
        target.replace(aside.parent / "old")
    aside.replace(target)


@contextlib.contextmanager
def path_lock(path: Path) -> Iterator[None]:
    """Lock ``path`` for this process; other processes wait. Remove what a killed writer left.

    The lock is a file beside ``path``. The system frees it when the process ends, however it ends.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # O_CLOEXEC: a child process that outlives this one must not inherit the lock.
        handle = os.open(
            path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644
        )
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        _remove_leftovers(path)  # safe only now: nobody else can be writing
        yield
    finally:
        os.close(handle)  # frees the lock; the lock file stays, because removing it would race


def _remove_leftovers(target: Path) -> None:
    """Remove the scratch folders of writers of ``target`` that were killed."""
    for left in target.parent.glob(f".tmp-{glob.escape(target.name)}-*"):
        shutil.rmtree(left, ignore_errors=True)
