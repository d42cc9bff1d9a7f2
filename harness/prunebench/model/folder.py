"""A local folder with a transformers checkpoint: is it complete, how many parameters, what is its fingerprint. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunebench.errors import PrunebenchError
from prunebench.model.cache import file_sha256
from prunebench.model.headers import safetensors_header

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PRUNING_FILE = "pruning.json"
PRUNED = ("model.pruned.safetensors", "model.safetensors.index.pruned.json")
"""The plan of a pruned model, and its weights where the plan is needed to load them (see `shape`)."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
)
_HASHED = {".json", ".safetensors", ".model", ".txt", ".jinja"}
_CONVERT = "convert it once: AutoModelForCausalLM.from_pretrained(FOLDER, weights_only=True).save_pretrained(NEW_FOLDER)"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint. ``weights``: the files that are loaded; ``parameters``: None where they are packed."""

    folder: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]
    parameters: int | None

    @property
    def weight_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.weights)


def read_checkpoint(folder: Path, *, tokenizer: bool = True) -> Checkpoint:
    """Check a folder without loading it: config, whole safetensors, all shards, a tokenizer where one is asked for.

    Raises PrunebenchError that names the file at fault.
    """
    config = _read_json(
        folder / "config.json", missing=f"{folder} has no config.json, so it is no model folder"
    )
    weights = _weights(folder)
    tied = config.get("tie_word_embeddings") is True
    headers = [safetensors_header(path, tied=tied) for path in weights]
    counts = [header.parameters for header in headers]
    total = None if None in counts else sum(count for count in counts if count is not None)
    if tokenizer and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise PrunebenchError(
            f"{folder} has no tokenizer (none of {', '.join(TOKENIZER_FILES)})",
            hint="save the model's tokenizer there: AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER)",
        )
    return Checkpoint(folder, config, weights, total)


def fingerprint(folder: Path, *, code: bool = False) -> str:
    """SHA-256 over the names and contents of the files that decide what is loaded; ``code``: Python files too."""
    suffixes = _HASHED | ({".py"} if code else set())
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in suffixes and path.is_file():
            digest.update(f"{path.name}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()


def _weights(folder: Path) -> tuple[Path, ...]:
    """The files that are loaded: one file, else the shards of the index."""
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
        if outside := [name for name in names if Path(name).name != name]:
            raise PrunebenchError(
                f"{folder / listed} names {outside[0]!r}: a shard must lie in the model's folder",
                hint="copy the file there, and name it in the index by its name alone",
            )
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise PrunebenchError(
                f"{folder} lacks {len(missing)} of its {len(names)} shards: {', '.join(missing[:3])}",
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


def check_loaded(place: Path, report: Mapping[str, Any]) -> None:
    """Refuse what transformers reports of a load: it fills absent weights with random numbers and goes on."""
    for kind in ("missing_keys", "mismatched_keys", "error_msgs"):
        if faults := report.get(kind):
            names = ", ".join(sorted(map(_fault, faults))[:3])
            raise PrunebenchError(
                f"{place}: the weights do not fit the config: {len(faults)} {kind.replace('_', ' ')}: {names}",
                hint="take config and weights from the same checkpoint",
            )


def _fault(entry: Any) -> str:
    """A key, or a key with the shapes in the file and in the model."""
    if not isinstance(entry, tuple):
        return str(entry)
    key, stored, expected = entry
    return f"{key} is {list(stored)} instead of {list(expected)}"
