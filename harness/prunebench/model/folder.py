"""Read a checkpoint folder without torch: whether it is complete, its size, its fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunebench.errors import PrunebenchError
from prunebench.model.cache import file_sha256
from prunebench.model.families import FAMILIES
from prunebench.model.safetensors_header import (
    StoredTensor,
    parameter_count,
    safetensors_entries,
)

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PRUNING_FILE = "pruning.json"
PRUNED = ("model.pruned.safetensors", "model.safetensors.index.pruned.json")
"""Names of the weights if the folder can only be loaded with its `PRUNING_FILE`.

Plain loaders look for the usual names, so they fail instead of initialising missing weights.
"""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
)
# Suffixes of the files that decide what is loaded; a README does not.
_HASHED = {".json", ".safetensors", ".model", ".txt", ".jinja"}
_CONVERT = (
    "convert it once: AutoModelForCausalLM.from_pretrained(FOLDER, weights_only=True)"
    ".save_pretrained(NEW_FOLDER)"
)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: ``weights`` are its files, ``tensors`` all that they hold."""

    folder: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]
    tensors: Mapping[str, StoredTensor]

    @property
    def parameters(self) -> int | None:
        """Number of parameters; None if weights are packed (quantised).

        May read the embeddings, so it is not for code that times how files are read.
        """
        usual = FAMILIES.get(str(self.config.get("model_type")))
        tied = self.config.get("tie_word_embeddings", usual is not None and usual.tied)
        return parameter_count(self.tensors, tied=tied is True)

    @property
    def is_packed(self) -> bool:
        """Whether the weights are quantised."""
        return parameter_count(self.tensors, tied=False) is None

    @property
    def weight_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.weights)


def read_checkpoint(folder: Path, *, tokenizer: bool = True) -> Checkpoint:
    """Check a folder without loading it: config, intact safetensors, all shards, a tokenizer.

    ``tokenizer`` False accepts a folder without one. Raises PrunebenchError that names the file at
    fault.
    """
    config = read_config(folder)
    weights = _weights(folder)
    tensors = {
        name: tensor for path in weights for name, tensor in safetensors_entries(path).items()
    }
    if tokenizer and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise PrunebenchError(
            f"{folder} has no tokenizer (none of {', '.join(TOKENIZER_FILES)})",
            hint="save one there: AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER)",
        )
    return Checkpoint(folder, config, weights, tensors)


def read_config(folder: Path) -> dict[str, Any]:
    """The config of a checkpoint. Raises PrunebenchError if it is missing or no JSON object."""
    return _read_json(
        folder / "config.json", missing=f"{folder} has no config.json, so it is not a model folder"
    )


def fingerprint(folder: Path, *, code: bool = False) -> str:
    """SHA-256 over names and contents of the files that decide what is loaded.

    ``code`` includes Python files, which are run if the model's remote code is trusted.
    """
    suffixes = _HASHED | ({".py"} if code else set())
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in suffixes and path.is_file():
            digest.update(f"{path.name}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()


def _weights(folder: Path) -> tuple[Path, ...]:
    """The weight files to load: the single file, else the shards that the index lists."""
    # A folder may hold both kinds of names, if a plain model was saved over a pruned one.
    plain = any((folder / name).is_file() for name in (SINGLE, INDEX))
    single, listed = PRUNED if (folder / PRUNING_FILE).is_file() and not plain else (SINGLE, INDEX)
    if (folder / single).is_file():
        return (folder / single,)
    if (folder / listed).is_file():
        index = _read_json(folder / listed)
        shards = index.get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise PrunebenchError(f"{folder / listed} has no weight_map")
        names = sorted({str(name) for name in shards.values()})
        # A path in the index could make us read, and hash, files anywhere on the machine.
        if outside := [name for name in names if Path(name).name != name]:
            raise PrunebenchError(
                f"{folder / listed} names {outside[0]!r}: a shard must be in the model's folder",
                hint="copy the file there, and list it in the index without a path",
            )
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise PrunebenchError(
                f"{folder} lacks {len(missing)} of its {len(names)} shards: "
                f"{', '.join(missing[:3])}",
                hint="copy or download the missing files",
            )
        return tuple(folder / name for name in names)
    found = sorted(path.name for path in folder.iterdir())
    if any(name.endswith(".safetensors") for name in found):
        raise PrunebenchError(
            f"{folder} has neither {SINGLE} nor {INDEX}",
            hint=f"give the weight file the name {SINGLE}",
        )
    if any(name.endswith((".bin", ".pt", ".pth")) for name in found):
        raise PrunebenchError(
            f"{folder} has only pickled weights, which are never loaded", hint=_CONVERT
        )
    raise PrunebenchError(
        f"{folder} has no *.safetensors", hint="name a folder that save_pretrained wrote"
    )


def _read_json(path: Path, *, missing: str | None = None) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PrunebenchError(
            missing or f"{path} is missing", hint="name a folder that save_pretrained wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise PrunebenchError(
            f"{path} cannot be read: {error}", hint="copy or download the file again"
        ) from error
    if not isinstance(data, dict):
        raise PrunebenchError(f"{path} is not a JSON object")
    return data


def check_loaded(source: Path, report: Mapping[str, Any]) -> None:
    """Raise PrunebenchError if transformers' ``report`` on loading ``source`` lists faults.

    transformers only warns about them: it initialises missing weights at random and goes on.
    """
    for kind in ("missing_keys", "mismatched_keys", "error_msgs"):
        if faults := report.get(kind):
            names = ", ".join(sorted(map(_fault, faults))[:3])
            raise PrunebenchError(
                f"{source}: the weights do not fit the config: "
                f"{len(faults)} {kind.replace('_', ' ')}: {names}",
                hint="take config and weights from the same checkpoint",
            )


def _fault(entry: Any) -> str:
    """One entry of the report: a key, or a key with its shapes in the file and in the model."""
    if not isinstance(entry, tuple):
        return str(entry)
    key, stored, expected = entry
    return f"{key} is {list(stored)} instead of {list(expected)}"
