"""A model's bytes in memory and on disk, counted on the model itself, and saving it whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from prunebench.errors import PrunebenchError
from prunebench.model.files import replaced
from prunebench.model.quiet import quiet
from prunebench.model.shape import VARIANT, PruningFile, is_plain, shape_of, write_plan

# safetensors: name of each type, in the order in which a file holds tensors of several types, widest first
_NAMES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ORDER = {dtype: place for place, dtype in enumerate(_NAMES)}


def memory_bytes(model: torch.nn.Module) -> int:
    """Bytes of parameters and buffers; tensors that share memory count once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _distinct([*model.parameters(), *model.buffers()]))


def parameter_count(model: torch.nn.Module) -> int:
    """Number of parameters; tied ones count once."""
    return sum(tensor.numel() for tensor in _distinct(model.parameters()))


def safetensors_bytes(model: Any) -> int:
    """Exact size of the one safetensors file that ``model.save_pretrained`` writes, without writing it.

    The format: 8 bytes, a JSON header padded to a multiple of 8, the tensors without gaps; of tied ones transformers
    keeps the main one. Raises PrunebenchError for an element type that the format is not written with here.
    """
    tensors = _saved(model)
    unknown = sorted({str(tensor.dtype) for tensor in tensors.values()} - {str(dtype) for dtype in _NAMES})
    if unknown:
        raise PrunebenchError(f"the size of a safetensors file with {', '.join(unknown)} is not known")
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (_ORDER[item[1].dtype], item[0])):
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return 8 + -(-len(text) // 8) * 8 + end


def save(model: Any, tokenizer: Any, folder: Path, *, made_by: Mapping[str, Any] | None = None) -> None:
    """Save model and tokenizer so that ``folder`` is either as before or complete; an earlier checkpoint is replaced.

    With ``made_by`` (method, options, ...) a plan file goes with it; it says how to load a model whose layers differ.

    Raises PrunebenchError where the folder holds something else, cannot be written, or the disk is full.
    """
    if made_by is None:
        with save_into(model, tokenizer, folder):
            return
    plan = PruningFile(plain=is_plain(model), shape=shape_of(model), made_by=dict(made_by))
    with save_into(model, tokenizer, folder, variant=None if plan.plain else VARIANT) as aside:
        write_plan(aside, plan)


@contextmanager
def save_into(model: Any, tokenizer: Any, folder: Path, *, variant: str | None = None) -> Iterator[Path]:
    """Save aside, let the block add files to the folder that it gets, then move all of it into place.

    Raises PrunebenchError as `save` does; ``folder`` is then as before.
    """
    check_target(folder)
    with replaced(folder) as aside, quiet():
        model.save_pretrained(aside, variant=variant)
        if tokenizer is not None:
            tokenizer.save_pretrained(aside)
        yield aside
        for path in aside.iterdir():  # some writers leave files that only their owner may read
            path.chmod(0o644)


def check_target(folder: Path) -> None:
    """Raise PrunebenchError where ``folder`` holds something that is no checkpoint: nothing else is ever replaced."""
    empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not (folder / "config.json").is_file() and not empty:
        raise PrunebenchError(f"{folder} exists and is no checkpoint", hint="choose another folder")


def _saved(model: Any) -> Mapping[str, torch.Tensor]:
    """The tensors that are written: of several names for one memory the declared alias goes."""
    aliases = set(getattr(model, "all_tied_weights_keys", None) or ())
    kept: dict[object, str] = {}
    state: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
    for name in sorted(state, key=lambda name: (name in aliases, name)):
        kept.setdefault(_identity(state[name]), name)
    return _as_written(model, {name: state[name].detach().to("meta") for name in kept.values()})


def _as_written(model: Any, state: dict[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """The names and shapes on disk, which differ from those in memory for some families (GPT-NeoX's head)."""
    from transformers.core_model_loading import revert_weight_conversion

    written: Mapping[str, torch.Tensor] = revert_weight_conversion(model, state)
    return written


def _distinct(tensors: Iterable[torch.Tensor]) -> Iterable[torch.Tensor]:
    return {_identity(tensor): tensor for tensor in tensors}.values()


def _identity(tensor: torch.Tensor) -> object:
    """Equal for tensors over the same memory. Without memory (meta, empty) each is its own."""
    place = 0 if tensor.is_meta else tensor.data_ptr()
    return (tensor.device, place, tensor.dtype, tensor.shape) if place else id(tensor)
