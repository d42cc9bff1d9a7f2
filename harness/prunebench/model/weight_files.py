"""Find the weight files of a checkpoint folder, or say why it has none that can be loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunebench.errors import PrunebenchError
from prunebench.model.safetensors_header import StoredTensor, safetensors_entries
from prunebench.model.wrong_file import check_regular, read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PRUNING_FILE = "pruning.json"
PRUNED = ("model.pruned.safetensors", "model.safetensors.index.pruned.json")
"""Names of the weights if the folder can only be loaded with its `PRUNING_FILE`.

Plain loaders look for the usual names, so they fail instead of initialising missing weights.
"""
ADAPTER = "adapter_config.json"
"""The config of a PEFT adapter. transformers puts one that lies beside a model on top of it."""
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_SHARD = re.compile(r"(.+)-(\d{5,})-of-(\d{5,})\.safetensors")
_UNFINISHED = re.compile(r"\.safetensors\.(incomplete|part|partial|crdownload|download|tmp|aria2)$")
_OTHER_FRAMEWORKS = (".h5", ".msgpack", ".onnx", ".tflite", ".pb", ".mlmodel", ".nemo")
_CONVERT = (
    "convert it once: AutoModelForCausalLM.from_pretrained(FOLDER, weights_only=True)"
    ".save_pretrained(NEW_FOLDER)"
)
_MERGE = (
    "merge it into its base model first: AutoPeftModelForCausalLM.from_pretrained(FOLDER)"
    ".merge_and_unload().save_pretrained(NEW_FOLDER)"
)
_SAVED = "name a folder that save_pretrained wrote"


@dataclass(frozen=True)
class WeightFiles:
    """The weight files to load, and the index that lists them; None for a single file."""

    paths: tuple[Path, ...]
    index: Path | None = None

    def tensors(self) -> dict[str, StoredTensor]:
        """All tensors by name, from the headers of the files.

        Raises PrunebenchError if a file is damaged, or a tensor is in two of them.
        """
        found: dict[str, StoredTensor] = {}
        for path in self.paths:
            for name, tensor in safetensors_entries(path).items():
                if name in found:
                    raise PrunebenchError(
                        f"{path.parent}: {name} is stored in {found[name].path.name} and in "
                        f"{path.name}",
                        hint="download the checkpoint into an empty folder: its shards are of two "
                        "kinds",
                    )
                found[name] = tensor
        return found


def weight_files(folder: Path) -> WeightFiles:
    """The weight files of ``folder``: the single file, else the shards that the index lists.

    Raises PrunebenchError if there are none, or some are missing.
    """
    # A folder may hold both kinds of names, if a plain model was saved over a pruned one.
    plain = any((folder / name).is_file() for name in (SINGLE, INDEX))
    single, listed = PRUNED if (folder / PRUNING_FILE).is_file() and not plain else (SINGLE, INDEX)
    if (folder / single).is_file():
        return WeightFiles((folder / single,))
    if (folder / listed).is_file():
        return WeightFiles(_shards(folder, folder / listed), folder / listed)
    raise _no_weights(folder)


def no_config(folder: Path) -> PrunebenchError:
    """The error for a folder without config.json, by what it holds instead."""
    names = _names(folder)
    if broken := _broken_link(folder, ["config.json"]):
        return broken
    if ADAPTER in names:
        return PrunebenchError(f"{folder} holds a PEFT adapter, not a model", hint=_MERGE)
    if ggufs := [name for name in names if name.lower().endswith(".gguf")]:
        return PrunebenchError(
            f"{folder} has no config.json, but a GGUF file", hint=f"name {folder / ggufs[0]}"
        )
    if "params.json" in names:
        return PrunebenchError(
            f"{folder} has no config.json but params.json: it is in its publisher's own format",
            hint="download the version for transformers, or convert it with transformers' script",
        )
    return PrunebenchError(f"{folder} has no config.json, so it is not a model folder", hint=_SAVED)


def _shards(folder: Path, index: Path) -> tuple[Path, ...]:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, Mapping) or not shards:
        raise PrunebenchError(
            f"{index} has no weight_map, which says what file a tensor is in",
            hint="copy or download the file again",
        )
    names = sorted({str(name) for name in shards.values()})
    # A path in the index could make us read, and hash, files anywhere on the machine.
    if outside := [name for name in names if Path(name).name != name]:
        raise PrunebenchError(
            f"{index} names {outside[0]!r}: a shard must be in the model's folder",
            hint="copy the file there, and list it in the index without a path",
        )
    if broken := _broken_link(folder, names):
        raise broken
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise PrunebenchError(
            f"{folder} lacks {len(missing)} of its {len(names)} shards: {', '.join(missing[:3])}",
            hint="copy or download the missing files",
        )
    return tuple(folder / name for name in names)


def _no_weights(folder: Path) -> PrunebenchError:
    names = _names(folder)
    if broken := _broken_link(folder, [SINGLE, INDEX, *PRUNED]):
        return broken
    others = [name for name in names if name.endswith(".safetensors")]
    if shards := [match for name in others if (match := _SHARD.fullmatch(name))]:
        return _no_index(folder, shards)
    if others == [ADAPTER_WEIGHTS] or (others and ADAPTER in names):
        return PrunebenchError(f"{folder} holds a PEFT adapter, not a model", hint=_MERGE)
    if any(name.startswith("consolidated") for name in names):
        return PrunebenchError(
            f"{folder} has consolidated weights, which have their publisher's own names",
            hint=f"download {SINGLE}, or its shards with their index, of the same model",
        )
    if len(others) == 1:
        return PrunebenchError(
            f"{folder} has neither {SINGLE} nor {INDEX}",
            hint=f"if {others[0]} holds the whole model, give it the name {SINGLE}",
        )
    if others:
        return PrunebenchError(
            f"{folder} has neither {SINGLE} nor {INDEX}, but {len(others)} other weight files: "
            f"{', '.join(others[:3])}",
            hint=f"leave the model's file there, by the name {SINGLE}",
        )
    if any(name.endswith((".bin", ".pt", ".pth")) for name in names):
        return PrunebenchError(
            f"{folder} has only pickled weights, which are never loaded", hint=_CONVERT
        )
    return _elsewhere(folder, names)


def _elsewhere(folder: Path, names: Sequence[str]) -> PrunebenchError:
    """The error for a folder without any *.safetensors, by what it holds instead."""
    message = f"{folder} has no *.safetensors"
    if ggufs := [name for name in names if name.lower().endswith(".gguf")]:
        return PrunebenchError(f"{message}, but a GGUF file", hint=f"name {folder / ggufs[0]}")
    if parts := [name for name in names if _UNFINISHED.search(name)]:
        return PrunebenchError(
            f"{message}, but {parts[0]}: a download that did not finish", hint="download it again"
        )
    if others := [name for name in names if name.endswith(_OTHER_FRAMEWORKS)]:
        return PrunebenchError(
            f"{message}, but weights of another framework: {others[0]}",
            hint="download the safetensors of the same model, or convert it with transformers",
        )
    for name in names:
        if any((folder / name / one).is_file() for one in (SINGLE, INDEX)):
            return PrunebenchError(f"{message}; they are in {name}/", hint=f"name {folder / name}")
    return PrunebenchError(message, hint=_SAVED)


def _no_index(folder: Path, shards: Iterable[re.Match[str]]) -> PrunebenchError:
    """The error for shards without the file that lists them."""
    found = {int(shard[2]) for shard in shards}
    of = max(int(shard[3]) for shard in shards)
    missing = of - len(found & set(range(1, of + 1)))
    also = f", and {missing} of its {of} shards" if missing > 0 else ""
    return PrunebenchError(
        f"{folder} lacks {INDEX}, which lists its shards{also}",
        hint="copy or download it from where the shards are from",
    )


def _broken_link(folder: Path, names: Iterable[str]) -> PrunebenchError | None:
    """The error for a file that is there by its name only."""
    for path in (folder / name for name in names):
        if path.exists():
            check_regular(path)
        if path.is_symlink() and not path.exists():
            return PrunebenchError(
                f"{path} is a link to {path.readlink()}, which does not exist",
                hint="copy the folder with the files that its links name (cp -L), or download it",
            )
    return None


def _names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise PrunebenchError(f"cannot read {folder}: {error.strerror or error}") from error
