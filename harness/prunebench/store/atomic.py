"""Write a file so that a reader never sees it half written."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from prunebench.errors import PrunebenchError, is_full
from prunebench.model.files import is_special


def write_atomically(path: Path, text: str, *, durable: bool = True) -> None:
    """Write ``text`` so that a reader sees the old file or the new one, also after a power cut.

    A device or a pipe is written into. With ``durable=False`` a power cut may leave an empty file:
    for what the next run writes again.
    Raises PrunebenchError if the disk is full or the folder cannot be written.
    """
    try:
        if is_special(path):
            with path.open("w", encoding="utf-8") as file:
                file.write(text)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path = path.resolve()  # a link stays a link: what it names is replaced
        # In the same folder, because a rename is atomic only within one file system.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                # Before the rename: otherwise the new name could survive a power cut that the
                # content does not.
                if durable:
                    os.fsync(file.fileno())
            # mkstemp makes files that only their owner can read.
            Path(name).chmod(0o644)
            Path(name).replace(path)
            if durable:
                _sync_folder(path.parent)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        remedy = "free some space" if is_full(error) else "check that the folder may be written"
        raise PrunebenchError(
            f"cannot write {path}: {error.strerror or error}",
            hint=f"{remedy}, or choose another folder with --out; what is finished is kept",
        ) from error


def _sync_folder(folder: Path) -> None:
    """Make the renaming survive a power cut too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        # Some file systems cannot sync a folder.
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)
