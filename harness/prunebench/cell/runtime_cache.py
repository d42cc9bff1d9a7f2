"""Converted models, kept on disk by the content that they were converted from.

Converting takes minutes for a large model, and every cell needs the dense one. The folder is
bounded: what was not used for the longest time goes first.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunebench.model.cache import cache_dir
from prunebench.model.files import atomic_replace, path_lock, scratch_folder
from prunebench.record.runtimes import Conversion

LIMIT_BYTES = 20_000_000_000
IN_USE_S = 3600.0
"""What was used within this time may be open in another cell, and stays."""
LEFT_S = 24 * 3600.0
"""Scratch folders older than this belong to nobody."""
_FACTS = "conversion.json"


@dataclass(frozen=True)
class Converted:
    """A converted model."""

    path: Path
    """What the runtime opens."""
    conversion: Conversion
    versions: dict[str, str]


@dataclass(frozen=True)
class Made:
    """What converting into a new folder gave."""

    path: str
    """Relative to the folder."""
    seconds: float
    versions: dict[str, str]


def key_of(*parts: Any) -> str:
    """The name of what is converted from these: values that JSON has."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def converted(key: str, make: Callable[[Path], Made]) -> Converted:
    """The model that is kept under ``key``; if there is none, ``make`` writes it into a new folder.

    Raises PrunebenchError if the disk is full, and what ``make`` raises; nothing is kept then.
    """
    target = cache_dir() / "runtimes" / key
    # Cells that run side by side want the same dense model: the second waits and finds it.
    with path_lock(target):
        found = _kept(target)
        if found is None:
            with atomic_replace(target) as aside:
                aside.mkdir()
                made = make(aside)
                size = sum(one.stat().st_size for one in aside.rglob("*") if one.is_file())
                facts = {
                    "path": made.path,
                    "seconds": made.seconds,
                    "bytes": size,
                    "versions": made.versions,
                }
                (aside / _FACTS).write_text(json.dumps(facts), encoding="utf-8")
            found = _read(target, earlier=False)
            _make_room(target)
    return found


def _kept(target: Path) -> Converted | None:
    try:
        found = _read(target, earlier=True)
        os.utime(target)
    except (OSError, ValueError, KeyError):  # missing or damaged: converted again
        return None
    return found


def _read(target: Path, *, earlier: bool) -> Converted:
    facts = json.loads((target / _FACTS).read_text(encoding="utf-8"))
    conversion = Conversion(seconds=facts["seconds"], bytes=facts["bytes"], earlier=earlier)
    return Converted(target / facts["path"], conversion, facts["versions"])


def _make_room(newest: Path) -> None:
    """Remove what was not used for the longest time while the folder is larger than its limit."""
    entries = []
    for folder in filter(Path.is_dir, newest.parent.iterdir()):
        # A cell that is killed leaves its scratch folder; one that lives may still write there.
        if folder.name.startswith("."):
            if time.time() - folder.stat().st_mtime > LEFT_S:
                shutil.rmtree(folder, ignore_errors=True)
        else:
            size = sum(one.stat().st_size for one in folder.rglob("*") if one.is_file())
            entries.append((folder.stat().st_mtime, size, folder))
    total = sum(size for _, size, _ in entries)
    for used, size, folder in sorted(entries):
        if total <= LIMIT_BYTES or time.time() - used < IN_USE_S:
            return
        shutil.rmtree(folder, ignore_errors=True)
        total -= size


def scratch_for_models() -> AbstractContextManager[Path]:
    """A folder for models that are only saved to be converted: on the disk of the cache."""
    return scratch_folder(cache_dir() / "runtimes" / "model")
