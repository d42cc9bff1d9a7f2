"""The cache of huggingface_hub on this machine: what it holds, and at which commit.

Its layout is documented and shared with other programs:

    models--ORG--NAME/blobs/ETAG               contents of files
    models--ORG--NAME/snapshots/COMMIT/FILE    links to them
    models--ORG--NAME/refs/REVISION            the commit of a branch or tag
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from pathlib import Path
from typing import Any, Literal

Kind = Literal["model", "dataset"]
MAIN = "main"
"""The revision that is meant if none is named."""
COMMIT = re.compile(r"[0-9a-f]{40}")


def repository_folder(kind: Kind, repository: str) -> Path:
    """The folder of a repository in the cache; it may not exist."""
    from huggingface_hub import constants

    name = "--".join((f"{kind}s", *repository.split("/")))
    return Path(constants.HF_HUB_CACHE).expanduser() / name


def cached_repositories(kind: Kind) -> list[str]:
    """The ids of all repositories of this kind in the cache."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE).expanduser()
    with contextlib.suppress(OSError):
        return sorted(
            path.name.removeprefix(f"{kind}s--").replace("--", "/", 1)
            for path in folder.glob(f"{kind}s--*")
        )
    return []


def cached_commit(kind: Kind, repository: str, revision: str | None) -> str | None:
    """The commit that ``revision`` (None: `main`) is in the cache; None if it is not there."""
    revision = revision or MAIN
    if COMMIT.fullmatch(revision):
        return revision
    try:
        commit = (repository_folder(kind, repository) / "refs" / revision).read_text("ascii")
    except (OSError, ValueError):
        return None
    return commit.strip() if COMMIT.fullmatch(commit.strip()) else None


def cached_config(repository: str, revision: str | None) -> dict[str, Any] | None:
    """The config of a model in the cache; None if it is not there or is no JSON object."""
    commit = cached_commit("model", repository, revision)
    if commit is None:
        return None
    path = repository_folder("model", repository) / "snapshots" / commit / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None


def remember_commit(kind: Kind, repository: str, revision: str | None, commit: str) -> None:
    """Note in the cache which commit a branch or tag is. Raises OSError."""
    revision = revision or MAIN
    if COMMIT.fullmatch(revision):
        return
    ref = repository_folder(kind, repository) / "refs" / revision
    ref.parent.mkdir(parents=True, exist_ok=True)
    # In one step: another process may be reading it.
    aside = ref.with_name(f"{ref.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    aside.write_text(commit, encoding="ascii")
    aside.replace(ref)
