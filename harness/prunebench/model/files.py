"""Writing so that nobody ever sees half of it: aside first, then renamed into place."""

from __future__ import annotations

import contextlib
import errno
import glob
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from prunebench.errors import PrunebenchError


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError while ``path`` is written into a PrunebenchError."""
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
def scratch(target: Path) -> Iterator[Path]:
    """A folder beside ``target``, and so on its disk, that is gone afterwards."""
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".tmp-{target.name}-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def replaced(target: Path) -> Iterator[Path]:
    """A path to write a file or a folder to, which takes ``target``'s place once the block ends well.

    Raises PrunebenchError where the disk is full or the place cannot be written; ``target`` is then unchanged.
    """
    with scratch(target) as folder, disk_errors(target):
        aside = folder / target.name
        yield aside
        take_place(aside, target)


def take_place(aside: Path, target: Path) -> None:
    """Rename ``aside``, which lies in a `scratch` of ``target``, over it."""
    if target.is_dir():  # a folder that is not empty cannot be renamed over
        target.replace(aside.parent / "old")
    aside.replace(target)


def sweep(target: Path) -> None:
    """Remove what writers of ``target`` left beside it when they were killed. Only while nobody else may write it."""
    for left in target.parent.glob(f".tmp-{glob.escape(target.name)}-*"):
        shutil.rmtree(left, ignore_errors=True)
