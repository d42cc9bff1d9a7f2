"""Read a checkpoint folder without torch: whether it is complete, its size, its fingerprint."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from prunebench.errors import PrunebenchError
from prunebench.model.cache import file_sha256
from prunebench.model.config_check import check_config
from prunebench.model.safetensors_header import StoredTensor, parameter_count
from prunebench.model.weight_files import no_config, weight_files
from prunebench.model.wrong_file import read_json

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
)
_SENTENCEPIECE = ("tokenizer.model", "spiece.model")
# Suffixes of the files that decide what is loaded; a README does not.
_HASHED = {".json", ".safetensors", ".model", ".txt", ".jinja"}


_TIED = {"gemma", "gemma2", "gemma3_text", "gpt2", "opt", "bloom", "cohere", "cohere2", "codegen"}
"""Types whose head is the embeddings if the config does not say `tie_word_embeddings`."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: ``weights`` are its files, ``tensors`` all that they hold."""

    folder: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]
    tensors: Mapping[str, StoredTensor]
    index: Path | None = None
    """The file that lists the weight files, if there are several."""

    @property
    def parameters(self) -> int | None:
        """Number of parameters; None if weights are packed (quantised).

        May read the embeddings, so it is not for code that times how files are read.
        """
        usual = self.config.get("model_type") in _TIED
        tied = self.config.get("tie_word_embeddings", usual)
        return parameter_count(self.tensors, tied=tied is True)

    @property
    def weight_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.weights)


def read_checkpoint(folder: Path, *, tokenizer: bool = True) -> Checkpoint:
    """Check a folder without loading it: config, intact safetensors, all shards, a tokenizer.

    ``tokenizer`` False accepts a folder without one. Raises PrunebenchError that names the file at
    fault.
    """
    config = read_config(folder)
    weights = weight_files(folder)
    tensors = weights.tensors()
    check_config(folder, config, tensors)
    if tokenizer:
        _check_tokenizer(folder)
    return Checkpoint(folder, config, weights.paths, tensors, weights.index)


def read_config(folder: Path) -> dict[str, Any]:
    """The config of a checkpoint. Raises PrunebenchError if it is missing or no JSON object."""
    try:
        return read_json(folder / "config.json")
    except FileNotFoundError:
        raise no_config(folder) from None


def fingerprint(folder: Path, *, code: bool = False) -> str:
    """SHA-256 over names and contents of the files that decide what is loaded.

    ``code`` includes Python files, which are run if the model's remote code is trusted.
    """
    digest = hashlib.sha256()
    for path in hashed_files(folder, code=code):
        digest.update(os.fsencode(path.name) + f"\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()


def hashed_files(folder: Path, *, code: bool = False) -> list[Path]:
    """The files whose content identifies the checkpoint; nothing else is loaded from a folder."""
    suffixes = _HASHED | ({".py"} if code else set())
    return sorted(path for path in folder.iterdir() if path.suffix in suffixes and path.is_file())


def _check_tokenizer(folder: Path) -> None:
    found = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not found:
        raise PrunebenchError(
            f"{folder} has no tokenizer (none of {', '.join(TOKENIZER_FILES)})",
            hint="save one there: AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER)",
        )
    if not set(found) <= set(_SENTENCEPIECE):
        return
    # transformers makes a tokenizer.json of such a file while loading, with these packages.
    needed = {"tiktoken": "tiktoken"}
    if not _is_tiktoken(folder / found[0]):
        needed = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}
    if missing := [package for package, module in needed.items() if not _is_installed(module)]:
        raise PrunebenchError(
            f"{folder} has no tokenizer.json, and to read {found[0]} transformers needs "
            f"{' and '.join(missing)}",
            hint=f"pip install {' '.join(missing)}; or put the model's tokenizer.json there",
        )


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that the module is in is not there
        return False


def _is_tiktoken(path: Path) -> bool:
    """Whether the file is a list of tokens in base64, as Llama 3 was released, not sentencepiece."""
    try:
        with path.open("rb") as file:
            return re.fullmatch(rb"[A-Za-z0-9+/=]+ \d+", file.readline(200).rstrip()) is not None
    except OSError as error:
        raise PrunebenchError(f"cannot read {path}: {error.strerror or error}") from error
