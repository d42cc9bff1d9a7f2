"""The cache folder on this machine, and SHA-256 sums of large files remembered in it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from prunebench.byte_path import path_text
from prunebench.errors import PrunebenchError
from prunebench.model.files import atomic_replace
from prunebench.user_path import user_path

_CHUNK = 1 << 20
_SMALL = 1 << 20  # bytes; hashing a smaller file costs less than looking its hash up
# A file can change twice within one tick of the file system's clock and keep its size and time. So
# remember a hash only if the file is older than this.
_SETTLED_S = 2.0


def cache_dir() -> Path:
    """$PRUNEBENCH_CACHE, else $XDG_CACHE_HOME/prunebench, else ~/.cache/prunebench.

    The folder is not created. Raises PrunebenchError if the variable names no possible folder.
    """
    if own := os.environ.get("PRUNEBENCH_CACHE"):
        hint = "set it to a folder that can be written"
        return user_path(own, what="PRUNEBENCH_CACHE", hint=hint).absolute()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if base.is_absolute():  # the XDG specification says to ignore relative paths
        return base / "prunebench"
    return Path.home() / ".cache" / "prunebench"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal. Hashes of large files are remembered by path, size and time.

    Raises PrunebenchError if the file cannot be read.
    """
    try:
        real = path.resolve(strict=True)
        stat = real.stat()
        key = {"path": path_text(real), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        memo = cache_dir() / "sha256" / f"{hashlib.sha256(os.fsencode(real)).hexdigest()}.json"
        large = stat.st_size >= _SMALL
        if large and (known := _remembered(memo, key)):
            return known
        digest = _digest(real)
    except OSError as error:
        raise PrunebenchError(f"cannot read {path}: {error.strerror or error}") from error
    if large and time.time() - stat.st_mtime > _SETTLED_S:
        # If the cache is not writable, the file is hashed again next time; that is no error.
        with contextlib.suppress(PrunebenchError), atomic_replace(memo) as aside:
            aside.write_text(json.dumps({**key, "sha256": digest}), encoding="utf-8")
    return digest


def _remembered(memo: Path, key: dict[str, object]) -> str | None:
    try:
        data = json.loads(memo.read_text(encoding="utf-8"))
        digest = data.pop("sha256")
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return digest if data == key and isinstance(digest, str) and len(digest) == 64 else None


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
