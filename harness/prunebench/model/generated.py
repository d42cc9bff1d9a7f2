"""Models that a plugin generates, always with the same bytes, for tests without a download."""

from __future__ import annotations

import pkgutil
import re
from dataclasses import dataclass
from pathlib import Path

from prunebench.errors import PrunebenchError, first_line
from prunebench.model.cache import cache_dir
from prunebench.model.files import atomic_replace, path_lock
from prunebench.model.folder import fingerprint


@dataclass(frozen=True)
class GeneratedAsset:
    """A function that writes a checkpoint with its tokenizer into an empty folder.

    ``location`` is 'MODULE:FUNCTION'; the function takes the folder. ``sha256`` pins what it
    writes: the folder's `fingerprint`.
    """

    location: str
    sha256: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.]+:[\w.]+", self.location):
            raise PrunebenchError(
                f"'{self.location}' is not a function", hint="write it as MODULE:FUNCTION"
            )
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise PrunebenchError(
                f"{self.location}: sha256 must be 64 hexadecimal digits in lower case"
            )

    def generate(self, cache: Path | None = None) -> Path:
        """The folder that the function wrote: from the cache if it is intact, else written anew.

        Raises PrunebenchError if the function is missing, fails, or writes other bytes than pinned.
        """
        # By hash and not by name, so that another version of the plugin gets another folder.
        target = (cache or cache_dir()) / "models" / f"made-{self.sha256}"
        if _intact(target, self):
            return target
        with path_lock(target):
            if not _intact(target, self):  # another process may have written it meanwhile
                with atomic_replace(target) as aside:
                    aside.mkdir()
                    _write(self, aside)
        return target


def _intact(folder: Path, asset: GeneratedAsset) -> bool:
    return folder.is_dir() and fingerprint(folder) == asset.sha256


def _write(asset: GeneratedAsset, folder: Path) -> None:
    try:
        pkgutil.resolve_name(asset.location)(folder)
    except Exception as error:
        raise PrunebenchError(
            f"the model of {asset.location} cannot be generated: {first_line(error)}",
            hint="install the plugin that provides it; see `prunebench plugins`",
        ) from error
    if (found := fingerprint(folder)) != asset.sha256:
        raise PrunebenchError(
            f"{asset.location} wrote another model than the pinned one (SHA-256 {found})",
            hint="the plugin's function and its sha256 must come from the same version",
        )
