"""Write files and folders so that readers never see half of one, and lock out other writers."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from prunebench.callbacks import ignore
from prunebench.errors import PrunebenchError, is_full

_RANDOM = re.compile("[a-z0-9_]{8}")  # how `mkdtemp` ends a name


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError raised while ``path`` is written into a PrunebenchError with a hint."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            hint = "free some space, or set PRUNEBENCH_CACHE to a folder on another disk"
        else:
            hint = "check that the folder exists and may be written"
        raise PrunebenchError(
            f"cannot write {path}: {error.strerror or error}", hint=hint
        ) from error


def check_writable(path: Path) -> None:
    """Raise PrunebenchError if nothing can be put at ``path``; nothing is left there.

    For work that takes hours: it should not end at an output that cannot be written. Folders on the
    way that are missing can be made.
    """
    if is_special(path):
        return
    there = path.resolve().parent
    with disk_errors(path):
        while not os.path.lexists(there):
            there = there.parent
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{there} is no folder")
        # A read-only file system refuses this to everybody, and a folder to those without rights.
        with tempfile.TemporaryFile(dir=there):
            pass


def check_file_target(path: Path, *, option: str = "--out") -> None:
    """As `check_writable`, for a single file that ``option`` names."""
    if path.is_dir():
        raise PrunebenchError(
            f"cannot write {path}: it is a folder", hint=f"name a file with {option}"
        )
    check_writable(path)


def is_special(path: Path) -> bool:
    """Whether ``path`` is a device or a pipe, such as /dev/stdout: something to write into.

    It must not be replaced by a file.
    """
    return path.exists() and not path.is_file() and not path.is_dir()


@contextlib.contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside ``target``, removed when the block ends.

    It is beside ``target`` so that both are on one disk, because only then is a rename atomic.
    """
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=_scratch_prefix(target)))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def atomic_replace(target: Path, check: Callable[[Path], object] = ignore) -> Iterator[Path]:
    """Give a path to write a file or folder to; it replaces ``target`` if the block succeeds.

    ``check`` is called with a folder that is about to be lost, see `move_over`. Raises
    PrunebenchError if the disk is full or ``target`` is not writable. After any exception
    ``target`` is unchanged.
    """
    with scratch_folder(target) as folder, disk_errors(target):
        aside = folder / target.name
        yield aside
        move_over(aside, target, check)


def move_over(aside: Path, target: Path, check: Callable[[Path], object] = ignore) -> None:
    """Rename ``aside`` to ``target``; ``aside`` must be in a `scratch_folder` of ``target``.

    If ``target`` is a folder, ``check`` is called with its new path before it is lost. If that
    raises, the folder is put back.
    """
    if target.is_dir() and not target.is_symlink():
        # rename(2) does not replace a folder that has files in it, so move the old one out first.
        old = aside.parent / ("old" if target.name != "old" else "older")
        target.rename(old)
        try:
            # Only now can nobody add a file to it unseen.
            check(old)
        except BaseException:
            old.rename(target)
            raise
    aside.replace(target)


def _scratch_prefix(target: Path) -> str:
    """The beginning of the names of scratch folders of ``target``; 8 random signs follow."""
    name = target.name
    # A name may have 255 bytes.
    if len(os.fsencode(name)) > 200:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return f".tmp-{name}-"


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
    prefix = _scratch_prefix(target)
    for left in target.parent.iterdir():
        # Not by the prefix alone: '.tmp-a-b-' begins like '.tmp-a-', and its writer may be alive.
        if left.name.startswith(prefix) and _RANDOM.fullmatch(left.name.removeprefix(prefix)):
            shutil.rmtree(left, ignore_errors=True)
