"""Single files of the hub: from its cache on this machine, else downloaded whole or not at all.

`huggingface_hub` downloads too, but begins a file again after a process was stopped, does not
compare hashes, and waits without an end for a hub that does not answer or asks for patience. So
files that come over HTTP are downloaded here, into the same cache. Files on Xet, the Hub's own
storage, come through its client, which does compare hashes.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import IO, Any

from prunebench.errors import PrunebenchError, first_line, is_full
from prunebench.model.files import path_lock
from prunebench.model.hub_access import Wanted, hub_errors, is_lost_connection, patient, require_hub
from prunebench.model.hub_cache import remember_commit, repository_folder

_PAUSE_S = 1.0  # before a connection that was lost is opened again
_TRIES = 3  # connections that bring next to nothing before a download is given up
_CHUNK = 1 << 20
_PLAIN = re.compile(r"[\w.-]*\w[\w.-]*")  # an ETag or a commit that may be the name of a file
_log = logging.getLogger(__name__)


def hub_file(wanted: Wanted, name: str, endpoint: str | None = None) -> Path:
    """A file of a repository: from the hub's cache, else downloaded.

    ``endpoint`` is the hub's address if it is known to answer. Raises PrunebenchError within
    seconds if the file is not cached and the hub cannot be reached, and if the hub refuses or the
    disk is full.
    """
    if (cached := cached_file(wanted, name)) is not None:
        return cached
    if endpoint is None:
        endpoint = require_hub(f"{wanted}: {name} is not cached", hint=wanted.offline)
    with hub_errors(wanted, endpoint, name):
        return _download(wanted, name, endpoint)


def cached_file(wanted: Wanted, name: str) -> Path | None:
    """A file of a repository in the hub's cache; None if it is not there.

    Raises PrunebenchError if the repository's name cannot be one.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(
            wanted.repository, name, revision=wanted.revision, repo_type=wanted.kind
        )
    except HFValidationError as error:
        raise PrunebenchError(
            f"{wanted} is not a Hub id: {first_line(error)}", hint="write it as org/name"
        ) from error
    return Path(found) if isinstance(found, str) else None


def _download(wanted: Wanted, name: str, endpoint: str) -> Path:
    """Download a file into the hub's cache, going on from where an earlier download stopped."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    url = hf_hub_url(
        wanted.repository,
        name,
        repo_type=wanted.kind,
        revision=wanted.revision,
        endpoint=endpoint,
    )
    remote = patient(
        lambda: get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT, endpoint=endpoint)
    )
    if not remote.commit_hash or not remote.etag:
        raise PrunebenchError(
            f"{wanted}: {url} has no commit or no ETag, so {endpoint} is no hub",
            hint="check HF_ENDPOINT, and the proxy if there is one",
        )
    slot = _slot(wanted, name, remote)
    try:
        if not slot.file.exists():
            _fill(slot, wanted, remote, url, endpoint)
        remember_commit(wanted.kind, wanted.repository, wanted.revision, slot.commit)
    except HfHubHTTPError:  # an OSError too
        raise
    except OSError as error:
        raise PrunebenchError(
            f"{wanted}: cannot write {slot.file}: {error.strerror or error}",
            hint=f"{'free some space' if is_full(error) else 'let that folder be written'}, "
            "or set HF_HOME to another folder",
        ) from error
    return slot.file


@dataclass(frozen=True)
class _Slot:
    """Where a file has its place in the hub's cache."""

    folder: Path
    """Of the repository."""
    name: str
    commit: str
    etag: str

    @property
    def file(self) -> Path:
        return self.folder / "snapshots" / self.commit / self.name

    @property
    def blob(self) -> Path:
        return self.folder / "blobs" / self.etag

    @property
    def lock(self) -> Path:
        """huggingface_hub locks the same path."""
        return self.folder.parent / ".locks" / self.folder.name / self.etag

    def link(self) -> None:
        """Let the file be the blob."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.unlink(missing_ok=True)  # a link whose blob was deleted
        try:
            self.file.symlink_to(os.path.relpath(self.blob, self.file.parent))
        except OSError:  # the file system has no links
            shutil.copyfile(self.blob, self.file)


def _slot(wanted: Wanted, name: str, remote: Any) -> _Slot:
    """The place of a file. Raises PrunebenchError if the hub's answer would leave the cache."""
    slot = _Slot(
        repository_folder(wanted.kind, wanted.repository), name, remote.commit_hash, remote.etag
    )
    inside = PurePosixPath(name)
    safe = not inside.is_absolute() and ".." not in inside.parts
    if not safe or not _PLAIN.fullmatch(slot.commit) or not _PLAIN.fullmatch(slot.etag):
        raise PrunebenchError(
            f"{wanted}: the hub names a file {name!r}, commit {slot.commit!r}, ETag {slot.etag!r}, "
            "which cannot be stored",
            hint="check HF_ENDPOINT",
        )
    return slot


def _fill(slot: _Slot, wanted: Wanted, remote: Any, url: str, endpoint: str) -> None:
    """Bring the blob into the cache, and link to it."""
    from huggingface_hub import constants, hf_hub_download

    has_xet = find_spec("hf_xet") is not None and not constants.HF_HUB_DISABLE_XET
    if getattr(remote, "xet_file_data", None) is not None and has_xet:
        hf_hub_download(
            wanted.repository,
            slot.name,
            repo_type=wanted.kind,
            revision=slot.commit,
            endpoint=endpoint,
            etag_timeout=constants.HF_HUB_ETAG_TIMEOUT,
        )
        return
    slot.blob.parent.mkdir(parents=True, exist_ok=True)
    with path_lock(slot.lock):
        if not slot.blob.exists():  # another process may have brought it meanwhile
            _complete(slot, wanted, url, remote.size)
        # A link that is there stays: who waited for the lock must not take it from a reader.
        if not slot.file.exists():
            slot.link()


def _complete(slot: _Slot, wanted: Wanted, url: str, size: int | None) -> None:
    """Download the blob, going on from where an earlier download stopped, and compare its hash."""
    part = slot.blob.with_name(f"{slot.etag}.incomplete")
    for _ in range(2):  # a part that another program left may be of another file
        resumed = part.exists()
        _need_space(part, size, wanted)
        patient(lambda: _append_all(part, wanted, slot.name, url, size))
        if _is_whole(part, slot.etag, size):
            part.replace(slot.blob)
            return
        part.unlink()
        if not resumed:
            break
    raise PrunebenchError(
        f"{wanted}: {slot.name} arrived damaged: it is not the file with the hash {slot.etag}",
        hint="run again; if that does not help, something between here and the hub changes files",
    )


def _need_space(part: Path, size: int | None, wanted: Wanted) -> None:
    """Raise PrunebenchError if the disk cannot hold what is left of the file."""
    left = (size or 0) - (part.stat().st_size if part.exists() else 0)
    free = shutil.disk_usage(part.parent).free
    if left > free:
        raise PrunebenchError(
            f"{wanted}: {left / 1e9:.3g} GB are left to download, "
            f"and {part.parent} has {free / 1e9:.3g} GB",
            hint="free some space, or set HF_HOME to a folder on another disk",
        )


def _append_all(part: Path, wanted: Wanted, name: str, url: str, size: int | None) -> None:
    """Download until ``part`` has ``size`` bytes; lost connections are opened again."""
    most, idle = 0, 0
    while True:
        fault: Exception | None = None
        try:
            _append(part, url, size)
        except Exception as error:
            if not is_lost_connection(error):
                raise
            fault = error
        have = part.stat().st_size if part.exists() else 0
        if fault is None and (size is None or have >= size):
            return
        # A connection that always breaks after a few bytes would take for ever.
        idle = 0 if have - most >= min(_CHUNK, (size or _CHUNK) / 10) else idle + 1
        most = max(most, have)
        if idle == _TRIES:
            whole = "" if size is None else f" of {size:,}"
            why = "it ended early" if fault is None else first_line(fault)
            raise PrunebenchError(
                f"{wanted}: the download of {name} stopped after {have:,}{whole} bytes: {why}",
                hint="run again: it goes on from there",
            ) from fault
        _log.warning("%s: the download of %s was cut after %d bytes", wanted, name, have)
        time.sleep(_PAUSE_S)


def _append(part: Path, url: str, size: int | None) -> None:
    """Append what the hub sends from the end of ``part`` on, or write it anew if it sends all."""
    import huggingface_hub.utils
    from huggingface_hub import constants, get_session

    hub: Any = huggingface_hub.utils  # its names are loaded lazily, which hides them from mypy
    have = part.stat().st_size if part.exists() else 0
    if size is not None and have >= size:
        if have == size:
            return
        part.unlink()  # longer than the file: not a part of it
        have = 0
    # Not compressed: the range counts bytes of the file.
    headers = {**hub.build_hf_headers(), "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    # On a redirect to another origin the client drops the token.
    with get_session().stream(
        "GET",
        url,
        headers=headers,
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        follow_redirects=True,
    ) as response:
        hub.hf_raise_for_status(response)
        goes_on = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        with part.open("ab" if response.status_code == 206 and goes_on else "wb") as file:
            for chunk in response.iter_bytes():
                file.write(chunk)


def _is_whole(part: Path, etag: str, size: int | None) -> bool:
    """Whether the file has its size, and its hash if the ETag is one.

    The Hub's ETag is the SHA-256 of a large file and git's SHA-1 of another. Some mirrors give the
    plain SHA-1.
    """
    if size is not None and part.stat().st_size != size:
        return False
    with part.open("rb") as file:
        if re.fullmatch(r"[0-9a-f]{64}", etag):
            return _digest(file, hashlib.sha256()) == etag
        if not re.fullmatch(r"[0-9a-f]{40}", etag):
            return True
        blob = hashlib.sha1(b"blob %d\0" % part.stat().st_size, usedforsecurity=False)
        if _digest(file, blob) == etag:
            return True
        file.seek(0)
        return _digest(file, hashlib.sha1(usedforsecurity=False)) == etag


def _digest(file: IO[bytes], digest: Any) -> str:
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    found: str = digest.hexdigest()
    return found
