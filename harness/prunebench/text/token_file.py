"""Token files: windows of token ids that are used exactly as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prunebench.errors import PrunebenchError, first_line

_FORM = "a token file is written by numpy.save of an int64 array [windows, length]"


def read_tokens(path: Path, *, windows: int | None, length: int) -> NDArray[np.int64]:
    """The first ``windows`` windows (None: all) of a token file, int64 [windows, length].

    Raises PrunebenchError if the file is damaged or not an int64 matrix, or if its windows have
    another length or are too few.
    """
    try:
        # Mapped, because a few windows of a large file may be enough; pickle could run code.
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise PrunebenchError(
            f"{path}: not a valid token file: {first_line(error)}", hint=_FORM
        ) from error
    if not isinstance(tokens, np.ndarray) or tokens.dtype != np.dtype("<i8") or tokens.ndim != 2:
        found = (
            f"{tokens.dtype} {list(tokens.shape)}"
            if isinstance(tokens, np.ndarray)
            else "an archive of arrays"
        )
        raise PrunebenchError(f"{path} holds {found}, not int64 [windows, length]", hint=_FORM)
    have, long = tokens.shape
    if long != length:
        raise PrunebenchError(
            f"{path}: its windows have {long} tokens, {length} asked",
            hint=f"set the length to {long}: the file fixes it",
        )
    if have < (windows or 1):
        raise PrunebenchError(
            f"{path} has {have} windows, {windows or 1} asked", hint=f"ask for at most {have}"
        )
    return np.array(tokens[:windows], dtype=np.int64)
