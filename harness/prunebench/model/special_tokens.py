"""The special tokens that a checkpoint's files name, read without transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunebench.errors import PrunebenchError
from prunebench.model.wrong_file import read_json

NAMES = ("bos", "eos", "unk", "pad")
_GENERIC = {"PreTrainedTokenizerFast", "TokenizersBackend"}
"""Classes without special tokens of their own; others add some that no file names."""

SpecialTokens = Mapping[str, str | None]
"""The text of bos, eos, unk and pad; None for those that are missing."""


def tokens_in(folder: Path) -> SpecialTokens | None:
    """The special tokens of the tokenizer in ``folder``; None if only transformers can tell."""
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        try:
            found |= read_json(folder / name)
        except (FileNotFoundError, PrunebenchError):  # what is wrong is said when it is loaded
            continue
    if found.get("tokenizer_class") not in _GENERIC:
        return None
    return {name: _text(found.get(f"{name}_token")) for name in NAMES}


def tokens_of(tokenizer: Any) -> SpecialTokens:
    """The special tokens of a tokenizer that is loaded."""
    return {name: _text(getattr(tokenizer, f"{name}_token", None)) for name in NAMES}


def _text(token: Any) -> str | None:
    # Older files have a mapping with the text under `content`.
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) else None
