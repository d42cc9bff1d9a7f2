"""Errors for what transformers cannot load: its reason in one sentence, and a fix if one is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prunebench.errors import PrunebenchError, first_line
from prunebench.model.folder import Checkpoint
from prunebench.model.wrong_file import AGAIN, read_json

_TRUST = "set `trust_remote_code: true` if you trust the code in that folder"
_VALUE = "correct that value, or download the file again"


def config_error(checkpoint: Checkpoint, source: Path, error: Exception) -> PrunebenchError:
    """The error for a config.json that transformers refuses; ``source`` is where it was read."""
    file = checkpoint.folder / "config.json"
    kind = checkpoint.config.get("model_type")
    if _wants_code(checkpoint.config):
        return PrunebenchError(f"{file}: the model runs code of its own", hint=_TRUST)
    if not _is_known(kind):
        return PrunebenchError(
            f"{file}: transformers {version('transformers')} knows no model type {kind!r}",
            hint="name a causal language model that it knows, or install a newer transformers",
        )
    return PrunebenchError(
        f"{file}: {_reason(error, source, checkpoint)}", hint=_hint(error) or _VALUE
    )


def load_error(
    checkpoint: Checkpoint, source: Path, error: Exception, what: str | None = None
) -> PrunebenchError:
    """The error for a model that cannot be built or filled in; ``what`` says which, if known."""
    what = what or f"transformers cannot load this {checkpoint.config.get('model_type')} model"
    hint = AGAIN if "damaged" in what else _hint(error)
    return PrunebenchError(
        f"{checkpoint.folder}: {what}: {_reason(error, source, checkpoint)}", hint=hint
    )


def tokenizer_error(folder: Path, source: Path, error: Exception) -> PrunebenchError:
    """The error for a tokenizer that cannot be read."""
    # The libraries do not say which of the files is wrong.
    for path in sorted(folder.glob("*.json")):
        if path.name.startswith(("tokenizer", "special_tokens", "added_tokens", "vocab")):
            try:
                read_json(path)
            except PrunebenchError as fault:
                return fault
    names = {path.name for path in folder.iterdir()}
    hint = _hint(error)
    if "custom code" in str(error):
        hint = _TRUST
    elif "tokenizer.json" not in names and "vocab.json" in names and "merges.txt" not in names:
        hint = "copy or download merges.txt, which belongs to vocab.json"
    reason = first_line(error).replace(str(source), str(folder))
    if isinstance(error, KeyError):
        reason = f"a file of it lacks the key {reason}"
    return PrunebenchError(
        f"{folder}: transformers cannot read the tokenizer: {reason}",
        hint=hint or "copy or download the tokenizer's files again",
    )


def _wants_code(config: Mapping[str, Any]) -> bool:
    return bool(config.get("auto_map")) and not _is_known(config.get("model_type"))


def _is_known(kind: Any) -> bool:
    from transformers import CONFIG_MAPPING

    return isinstance(kind, str) and kind in CONFIG_MAPPING


def _hint(error: Exception) -> str | None:
    """A fix for errors that mean one thing only."""
    if isinstance(error, ImportError) and "pip install" not in str(error):
        return "install the package that is named"
    if isinstance(error, OSError) and error.errno is not None:
        return "check that the file exists and may be read"
    return None


def _reason(error: Exception, source: Path, checkpoint: Checkpoint) -> str:
    text = first_line(error).replace(str(source), str(checkpoint.folder))
    if isinstance(error, KeyError) and error.args:
        # A lookup by a value of the config, such as the name of an activation.
        for key, value in _values(checkpoint.config):
            if value == error.args[0]:
                return f"{key} is {value!r}, which transformers does not know"
        # As text a KeyError is its key in quotes; some libraries give it a sentence.
        text = str(error.args[0])
        return text if " " in text else f"nothing is known by the name '{text}'"
    return text


def _values(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _values(value, f"{prefix}{key}.")
        elif isinstance(value, str):
            yield f"{prefix}{key}", value
