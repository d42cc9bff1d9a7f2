"""Text from a user that names a file or a folder, or might."""

from __future__ import annotations

import os
from pathlib import Path

from prunebench.byte_path import text_path
from prunebench.errors import PrunebenchError, one_line

_SHOWN = 60  # characters of a name in an error


def user_path(text: str | Path, *, what: str, hint: str, base: Path | None = None) -> Path:
    """The path that ``text`` means, whether or not it exists; '~' is a home folder.

    A `file:` URI is a path as well: so a path that is not UTF-8 can be written in a suite.

    A relative path starts from ``base``, by default from the working folder. Raises PrunebenchError
    if no file can be there: a name is too long or holds a NUL, there is no such user, a folder on
    the way may not be read. ``what`` is the option or the key that holds the text.
    """
    try:
        path = (base or Path()) / text_path(text).expanduser()
        if not _exists(path):
            # The system looks no further than the first missing folder. The names below it must be
            # possible too.
            there = next(parent for parent in path.absolute().parents if _exists(parent))
            for name in path.absolute().relative_to(there).parts:
                _exists(there / name)
    except (OSError, RuntimeError, ValueError) as error:
        name = one_line(str(text))
        shown = name if len(name) <= _SHOWN else f"{name[: _SHOWN - 3]}..."
        reason = getattr(error, "strerror", None) or error
        raise PrunebenchError(
            f"{what} '{shown}' is not a valid path: {reason}", hint=hint
        ) from error
    return path


def _exists(path: Path) -> bool:
    """As `Path.exists`, which hides some of the errors that are raised here."""
    try:
        os.stat(path)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
