"""Get models from the Hugging Face hub, or say within seconds why that is not possible."""

from __future__ import annotations

import fnmatch
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from prunebench.errors import PrunebenchError
from prunebench.experiment.model import ModelRef
from prunebench.model.config_check import check_plain
from prunebench.model.folder import read_checkpoint, read_config
from prunebench.model.hub_access import Wanted, hub_errors, patient, require_hub
from prunebench.model.hub_cache import MAIN, remember_commit
from prunebench.model.hub_files import cached_file, hub_file
from prunebench.model.quiet import quiet
from prunebench.model.supported import check_family

_OFFLINE = (
    "without a network use a local folder, a .gguf file, or the named model smollm2-135m-instruct"
)
_CONFIG = "config.json"
_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
_IGNORED = ("*/*", "consolidated*", "adapter*")  # subfolders, and copies in other layouts
_AT_ONCE = 8  # files that are downloaded side by side


def snapshot(ref: ModelRef) -> Path:
    """The local folder of a Hub model: from the hub's own cache if complete there, else downloaded.

    Never downloads pickled weights, and Python files only if ``ref`` trusts remote code. Raises
    PrunebenchError if the hub cannot be reached, refuses, or has no such model, revision or
    safetensors, or if the model's family cannot be pruned.
    """
    wanted = Wanted("model", ref.location, ref.revision, _OFFLINE)
    if (cached := _cached(ref, wanted)) is not None:
        return cached
    endpoint = require_hub(str(wanted), hint=_OFFLINE)
    with quiet():  # the client of Xet draws bars
        folder = _download(ref, wanted, endpoint)
    try:
        return read_checkpoint(folder).folder
    except PrunebenchError as error:
        hint = "choose another revision; only safetensors are loaded, never pickled weights"
        raise PrunebenchError(f"{wanted}: {error.message}", hint=hint) from error


def _cached(ref: ModelRef, wanted: Wanted) -> Path | None:
    """The folder in the hub's own cache; None if the model is not there or is incomplete."""
    config = cached_file(wanted, _CONFIG)
    if config is None:
        return None
    try:
        found = read_checkpoint(config.parent)
    except PrunebenchError:
        return None
    # A snapshot made without trust has no Python files, so it is incomplete for a trusting model.
    wants_code = ref.trust_remote_code and "auto_map" in found.config
    return None if wants_code and not any(found.folder.glob("*.py")) else found.folder


def _download(ref: ModelRef, wanted: Wanted, endpoint: str) -> Path:
    """Download the files of the model, all of one commit."""
    from huggingface_hub import HfApi, constants

    with hub_errors(wanted, endpoint):
        info = patient(
            lambda: HfApi(endpoint=endpoint).model_info(
                wanted.repository,
                revision=wanted.revision or MAIN,
                timeout=constants.HF_HUB_ETAG_TIMEOUT,
            )
        )
    names = [sibling.rfilename for sibling in info.siblings or []]
    patterns = (*_FILES, "*.py") if ref.trust_remote_code else _FILES
    chosen = [name for name in names if _matches(name, patterns) and not _matches(name, _IGNORED)]
    if _CONFIG not in chosen:
        raise PrunebenchError(
            f"{wanted} has no {_CONFIG} on the hub, so it is not a model in transformers' format",
            hint="name a repository of safetensors with their config; "
            "of a repository of GGUF files, download one and name the file",
        )
    # By the commit: the branch may move while files are downloaded.
    fetch = partial(hub_file, replace(wanted, revision=info.sha), endpoint=endpoint)
    # First the config, alone: it may say that the rest is not worth a download.
    folder = fetch(_CONFIG).parent
    config = read_config(folder)
    check_family(config, wanted)
    check_plain(config, wanted)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(fetch, chosen))
    # Last: an unfinished download is not what the branch is.
    remember_commit(wanted.kind, wanted.repository, wanted.revision, folder.name)
    return folder


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
