"""The folder that transformers loads from: what was hashed, without what sets up the run.

A checkpoint's folder may hold more than the model. transformers obeys all of it: an adapter beside
the weights is put on top, config.json names an attention kernel, a data type, a device or another
weight file. A benchmark must choose these itself, or two models are not measured alike. So we load
from a folder of links to the files that identify the checkpoint, with a config.json that describes
the model and nothing else. Its path is always UTF-8, which some libraries need.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunebench.byte_path import temporary_parent
from prunebench.errors import PrunebenchError, first_line
from prunebench.model.adapter import FOLDER
from prunebench.model.folder import Checkpoint, hashed_files
from prunebench.model.weight_files import ADAPTER
from prunebench.model.wrong_file import read_json

# Keys of config.json that say how a model is run -> the value that this harness uses; None if the
# value is chosen elsewhere (by the suite, by the hardware) and a checkpoint has no say.
_SETTINGS: Mapping[str, Any] = {
    "attn_implementation": None,
    "_attn_implementation": None,
    "_attn_implementation_internal": None,
    "_attn_implementation_autoset": None,
    "experts_implementation": None,
    "_experts_implementation": None,
    "_experts_implementation_internal": None,
    "dtype": None,
    "torch_dtype": None,
    "use_bfloat16": False,
    "device": None,
    "device_map": None,
    "max_memory": None,
    "offload_folder": None,
    "tp_plan": None,
    "tp_size": None,
    "pp_plan": None,
    "distributed_config": None,
    "use_cache": True,
    "return_dict": True,
    "use_return_dict": True,
    "output_attentions": False,
    "output_hidden_states": False,
    "torchscript": False,
    "is_encoder_decoder": False,
    "chunk_size_feed_forward": 0,
    "gradient_checkpointing": False,
    "use_kernels": False,
    "kernel_config": None,
    "fusion_config": None,
    "compile_config": None,
    "transformers_weights": None,
    "name_or_path": "",
    "_name_or_path": "",
}
# Told by every checkpoint, and no choice of its author.
_UNREMARKABLE = {"dtype", "torch_dtype", "name_or_path", "_name_or_path"}
GGUF = "model.gguf"
_GENERATION = "generation_config.json"
# Values that greedy decoding has anyway, and keys that set nothing.
_GREEDY: Mapping[str, Any] = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "max_length": 20,
}
_NO_SETTING = {"transformers_version", "_from_model_config"}


@dataclass(frozen=True)
class LoadingFolder:
    """A folder of links, which exists until this process ends."""

    path: Path
    ignored: Mapping[str, Any]
    """What the checkpoint says about how it is run and the harness does otherwise, by file and
    key: {'config.json': {'attn_implementation': 'flash_attention_2'}}."""
    notes: tuple[str, ...]
    """What lies in the checkpoint's folder and is not loaded; each the end of a sentence."""


def loading_folder(checkpoint: Checkpoint, *, code: bool = False) -> LoadingFolder:
    """Make a folder to load ``checkpoint`` from.

    ``code`` says that its own code is trusted: that may read any file, so all are there.
    """
    folder = checkpoint.folder
    path = _temporary_folder() / os.fsencode(folder.name).decode("utf-8", "backslashreplace")
    path.mkdir()
    weights = set(checkpoint.weights)
    notes = _unused_files(checkpoint)
    for file in folder.iterdir() if code else hashed_files(folder):
        if file.name in {"config.json", ADAPTER} or file == checkpoint.index:
            continue
        if file.suffix == ".safetensors" and file not in weights:
            continue
        (path / file.name).symlink_to(file.absolute())
    config, ignored = _split(checkpoint.config)
    _write(path / "config.json", config)
    if checkpoint.index is not None:
        _write(path / checkpoint.index.name, _index(checkpoint))
    generation, fault = _generation_settings(folder)
    if fault:
        (path / _GENERATION).unlink(missing_ok=True)
        notes.append(f"has a {_GENERATION} that cannot be used: {fault}")
    found = {"config.json": ignored, _GENERATION: generation}
    return LoadingFolder(path, {file: keys for file, keys in found.items() if keys}, tuple(notes))


def gguf_folder(file: Path) -> Path:
    """A folder with nothing but a link to a GGUF file, which is called model.gguf there.

    transformers would also read what lies beside the file, such as an adapter.
    """
    folder = _temporary_folder()
    (folder / GGUF).symlink_to(file.absolute())
    return folder


def _temporary_folder() -> Path:
    """An empty folder, which is removed when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="prunebench-model-", dir=temporary_parent()))
    owner = os.getpid()

    # A forked child inherits the handler, but not the folder.
    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


def _unused_files(checkpoint: Checkpoint) -> list[str]:
    """Files that belong to some model, and not to this one."""
    folder, weights = checkpoint.folder, set(checkpoint.weights)
    names = [path.name for path in hashed_files(folder) if path.suffix == ".safetensors"]
    adapters = [name for name in names if name.startswith("adapter_")]
    others = [name for name in names if folder / name not in weights and name not in adapters]
    found = []
    if (folder / ADAPTER).is_file():
        found.append(
            f"holds an adapter beside the model ({', '.join([ADAPTER, *adapters])}), "
            "which was not loaded"
        )
    elif adapters:
        others += adapters
    if (folder / FOLDER / ADAPTER).is_file():
        found.append(f"keeps an adapter in {FOLDER}/, which was not loaded")
    if others:
        shown = ", ".join(others[:3]) + (" ..." if len(others) > 3 else "")
        found.append(f"holds weight files that were not loaded: {shown}")
    return found


def _split(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The part of a config that describes the model, and the settings in it that are not ours."""
    kept: dict[str, Any] = {}
    ignored: dict[str, Any] = {}
    for key, value in config.items():
        if key in _SETTINGS:
            if value not in (None, _SETTINGS[key]) and key not in _UNREMARKABLE:
                ignored[key] = value
        elif key.endswith("_config") and isinstance(value, Mapping):
            kept[key], inner = _split(value)
            ignored |= {f"{key}.{name}": setting for name, setting in inner.items()}
        else:
            kept[key] = value
    return kept, ignored


def _index(checkpoint: Checkpoint) -> dict[str, Any]:
    """The index as the shards are: an author's may lack `metadata`, or name another shard."""
    tensors = checkpoint.tensors
    return {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
        "weight_map": {name: tensor.path.name for name, tensor in tensors.items()},
    }


def _generation_settings(folder: Path) -> tuple[dict[str, Any], str | None]:
    """What generation_config.json would change, and why it cannot be used, if it cannot."""
    from transformers import GenerationConfig

    try:
        settings = read_json(folder / _GENERATION)
        GenerationConfig.from_dict(settings)
    except FileNotFoundError:
        return {}, None
    except PrunebenchError as error:
        return {}, error.message
    except Exception as error:
        return {}, first_line(error)
    return {
        key: value
        for key, value in settings.items()
        if value not in (None, _GREEDY.get(key), _SETTINGS.get(key))
        and key not in _NO_SETTING
        and not (key.endswith("_token_id") and isinstance(value, int))
    }, None


def _write(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
