"""Token files: windows of ids that somebody fixed, used exactly as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prunebench.errors import PrunebenchError, first_line

_FORM = "a token file is written by numpy.save of an int64 array [windows, length]"


def read_tokens(path: Path, *, windows: int | None, length: int) -> NDArray[np.int64]:
    """The first ``windows`` windows (all where None) of a token file, int64 [windows, length].

    Raises PrunebenchError where the file is damaged or not an int64 matrix, where its windows have another
    length, and where it holds fewer.
    """
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise PrunebenchError(
            f"{path}: not a sound token file: {first_line(error)}", hint=_FORM
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
