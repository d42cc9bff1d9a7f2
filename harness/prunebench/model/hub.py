"""Get models from the Hugging Face hub, or say within seconds that it cannot be reached."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from prunebench.errors import PrunebenchError, first_line
from prunebench.experiment.model import ModelRef
from prunebench.model.folder import read_checkpoint
from prunebench.model.quiet import quiet

_PROBE_S = 4.0  # seconds that the hub has to answer before it counts as unreachable
_OFFLINE = (
    "without a network use a local folder, a .gguf file, or the named model smollm2-135m-instruct"
)
_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_IGNORED = ["*/*", "consolidated*", "adapter*"]  # subfolders, and copies in other layouts


def require_hub(wanted: str, *, hint: str) -> str:
    """The endpoint ($HF_ENDPOINT, else the public one), after it has answered; uses proxies.

    ``wanted`` starts the error message. Raises PrunebenchError within seconds if the hub cannot be
    reached or $HF_HUB_OFFLINE is set.
    """
    from huggingface_hub import constants

    endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    fault = "HF_HUB_OFFLINE is set" if offline or constants.HF_HUB_OFFLINE else _probe(endpoint)
    if fault:
        raise PrunebenchError(f"{wanted}: cannot reach the hub at {endpoint}: {fault}", hint=hint)
    return endpoint


def _probe(endpoint: str) -> str | None:
    """Why the endpoint does not answer; None if it does. A refusal counts as an answer."""
    from huggingface_hub import get_session

    outcome = [f"no answer within {_PROBE_S:.0f} s"]

    def ask() -> None:
        try:
            get_session().head(endpoint, timeout=_PROBE_S)
            outcome[0] = ""
        except Exception as error:
            outcome[0] = first_line(error)

    # In a thread, because the request's timeout does not cover looking up the host name, which can
    # hang for much longer.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PROBE_S + 1)
    return outcome[0] or None


def snapshot(ref: ModelRef) -> Path:
    """The local folder of a Hub model: from the hub's own cache if complete there, else downloaded.

    Never downloads pickled weights, and Python files only if ``ref`` trusts remote code. Raises
    PrunebenchError if the hub cannot be reached or has no such model, revision or safetensors.
    """
    label = f"model '{ref.location}'"
    if (cached := _cached(ref, label)) is not None:
        return cached
    folder = _download(ref, label, require_hub(label, hint=_OFFLINE))
    try:
        return read_checkpoint(folder).folder
    except PrunebenchError as error:
        hint = "choose another revision; only safetensors are loaded, never pickled weights"
        raise PrunebenchError(f"{label}: {error.message}", hint=hint) from error


def _cached(ref: ModelRef, label: str) -> Path | None:
    """The folder in the hub's own cache; None if the model is not there or is incomplete."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(ref.location, "config.json", revision=ref.revision)
    except HFValidationError as error:
        raise PrunebenchError(
            f"{label} is not a Hub id: {first_line(error)}", hint="write it as org/name"
        ) from error
    if not isinstance(config, str):
        return None
    try:
        found = read_checkpoint(Path(config).parent)
    except PrunebenchError:
        return None
    # A snapshot made without trust has no Python files, so it is incomplete for a trusting model.
    wants_code = ref.trust_remote_code and "auto_map" in found.config
    return None if wants_code and not any(found.folder.glob("*.py")) else found.folder


def _download(ref: ModelRef, label: str, endpoint: str) -> Path:
    from huggingface_hub import errors, snapshot_download

    patterns = _FILES + (["*.py"] if ref.trust_remote_code else [])
    try:
        with quiet():
            return Path(
                snapshot_download(
                    ref.location,
                    revision=ref.revision,
                    endpoint=endpoint,
                    allow_patterns=patterns,
                    ignore_patterns=_IGNORED,
                )
            )
    except errors.GatedRepoError as error:
        hint = "accept its licence on the hub, then run `hf auth login`"
        raise PrunebenchError(f"{label} is gated", hint=hint) from error
    except errors.RevisionNotFoundError as error:
        raise PrunebenchError(
            f"{label} has no revision '{ref.revision}'", hint="check the revision"
        ) from error
    except errors.RepositoryNotFoundError as error:
        hint = "check its spelling; private ones need `hf auth login`"
        raise PrunebenchError(f"{label} is not on the hub", hint=hint) from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        raise PrunebenchError(
            f"{label} cannot be downloaded: {first_line(error)}", hint=_OFFLINE
        ) from error
