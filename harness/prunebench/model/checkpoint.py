"""A model's bytes in memory and on disk, counted on the model itself, and saving it whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from prunebench.errors import PrunebenchError
from prunebench.model.files import atomic_replace, disk_errors, move_over, scratch_folder
from prunebench.model.folder import INDEX, SINGLE
from prunebench.model.pruning_json import (
    VARIANT,
    PruningFile,
    is_plain,
    shape_of,
    write_pruning_file,
)
from prunebench.model.quiet import quiet
from prunebench.model.safetensors_header import StoredTensor
from prunebench.model.safetensors_io import TensorFiles, layout, new_file


def memory_bytes(model: torch.nn.Module) -> int:
    """Bytes of parameters and buffers; tensors that share memory count once."""
    return sum(
        tensor.numel() * tensor.element_size()
        for tensor in _distinct([*model.parameters(), *model.buffers()])
    )


def parameter_count(model: torch.nn.Module) -> int:
    """Number of parameters; tied ones count once."""
    return sum(tensor.numel() for tensor in _distinct(model.parameters()))


def safetensors_bytes(model: Any) -> int:
    """Exact size of the one safetensors file that ``model.save_pretrained`` writes, without writing it.

    Of tied tensors transformers keeps the main one. Raises PrunebenchError for an element type that the format is not
    written with here.
    """
    return layout(_saved(model)).nbytes


def save(
    model: Any, tokenizer: Any, folder: Path, *, made_by: Mapping[str, Any] | None = None
) -> None:
    """Save model and tokenizer so that ``folder`` is either as before or complete; an earlier checkpoint is replaced.

    With ``made_by`` (method, options, ...) a plan file goes with it; it says how to load a model whose layers differ.

    Raises PrunebenchError where the folder holds something else, cannot be written, or the disk is full.
    """
    if made_by is None:
        with save_into(model, tokenizer, folder):
            return
    plan = PruningFile(plain=is_plain(model), shape=shape_of(model), made_by=dict(made_by))
    with save_into(model, tokenizer, folder, variant=None if plan.plain else VARIANT) as aside:
        write_pruning_file(aside, plan)


@contextmanager
def save_into(
    model: Any, tokenizer: Any, folder: Path, *, variant: str | None = None
) -> Iterator[Path]:
    """Save aside, let the block add files to the folder that it gets, then move all of it into place.

    Raises PrunebenchError as `save` does; ``folder`` is then as before.
    """
    check_target(folder)
    with atomic_replace(folder) as aside, quiet():
        model.save_pretrained(aside, variant=variant)
        if tokenizer is not None:
            tokenizer.save_pretrained(aside)
        yield aside
        _readable(aside)


@contextmanager
def save_by_pieces(
    model: Any, tokenizer: Any, folder: Path, *, shard_bytes: int
) -> Iterator[tuple[Path, TensorFiles]]:
    """As `save_into` for a model on the meta device, whose tensors the block writes one by one, by their names in the model.

    The block gets the folder and the tensors of its weight files, which hold at most ``shard_bytes`` each unless one
    tensor is larger, as transformers fills them.
    """
    check_target(folder)
    with scratch_folder(folder) as beside:
        aside = beside / folder.name
        with disk_errors(folder), quiet():
            aside.mkdir()
            model.save_pretrained(aside, state_dict={})  # the config alone
            if tokenizer is not None:
                tokenizer.save_pretrained(aside)
            entries = _new_shards(model, aside, shard_bytes)
        with TensorFiles(entries, write=True) as tensors:
            yield aside, tensors
        with disk_errors(folder):
            _readable(aside)
            move_over(aside, folder)


def _new_shards(model: Any, folder: Path, shard_bytes: int) -> dict[str, StoredTensor]:
    """Weight files of the right size, empty yet, with their index where there are several; where each tensor lies, by name."""
    from huggingface_hub import split_torch_state_dict_into_shards

    names = saved_names(model)
    written = dict(_saved(model))  # in the order in which transformers fills its shards
    stem, suffix = SINGLE.rsplit(".", 1)
    split = split_torch_state_dict_into_shards(
        written, filename_pattern=f"{stem}{{suffix}}.{suffix}", max_shard_size=shard_bytes
    )
    entries: dict[str, StoredTensor] = {}
    for file, inside in split.filename_to_tensors.items():
        entries |= new_file(folder / file, {name: written[name] for name in inside})
    if split.is_sharded:
        told = {"total_parameters": parameter_count(model), **split.metadata}
        index = {"metadata": told, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(
            json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )
    return {name: entries[written_as] for name, written_as in names.items()}


def _readable(folder: Path) -> None:
    for path in folder.iterdir():  # some writers leave files that only their owner may read
        path.chmod(0o644)


def check_target(folder: Path) -> None:
    """Raise PrunebenchError where ``folder`` holds something that is no checkpoint: nothing else is ever replaced."""
    empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not (folder / "config.json").is_file() and not empty:
        raise PrunebenchError(f"{folder} exists and is no checkpoint", hint="choose another folder")


def saved_names(model: Any) -> dict[str, str]:
    """The name in a weight file of each tensor that is written, by its name in the model, in the model's order.

    Raises PrunebenchError where a tensor is not written as it is, but joined with others or split.
    """
    found = {}
    for name, tensor in _kept(model).items():
        written = _as_written(model, {name: tensor})
        if [part.shape for part in written.values()] != [tensor.shape]:
            raise PrunebenchError(
                f"{name} lies on disk in another form than in memory",
                hint="a model of this family must be loaded as a whole",
            )
        found[name] = next(iter(written))
    return found


def _saved(model: Any) -> Mapping[str, torch.Tensor]:
    return _as_written(model, _kept(model))


def _kept(model: Any) -> dict[str, torch.Tensor]:
    """The tensors that are written, on the meta device: of several names for one memory the declared alias goes."""
    aliases = set(getattr(model, "all_tied_weights_keys", None) or ())
    kept: dict[object, str] = {}
    state: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
    for name in sorted(state, key=lambda name: (name in aliases, name)):
        kept.setdefault(_identity(state[name]), name)
    names = set(kept.values())
    return {name: tensor.detach().to("meta") for name, tensor in state.items() if name in names}


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
