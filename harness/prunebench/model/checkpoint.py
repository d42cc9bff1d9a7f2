"""Count a model's bytes in memory and on disk, and save it completely or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from prunebench.byte_path import utf8_path
from prunebench.model.adapter import FOLDER, attached
from prunebench.model.files import atomic_replace, disk_errors, move_over, scratch_folder
from prunebench.model.pruning_json import (
    VARIANT,
    PruningFile,
    added_biases,
    is_plain,
    shape_of,
    write_pruning_file,
)
from prunebench.model.quiet import quiet
from prunebench.model.safetensors_header import StoredTensor
from prunebench.model.safetensors_io import TensorFiles, layout, new_file
from prunebench.model.save_target import check_replaceable, save_target
from prunebench.model.weight_files import INDEX, SINGLE
from prunebench.record.kept_units import KeptUnits


def memory_bytes(model: torch.nn.Module) -> int:
    """Bytes of parameters and buffers. Tensors that share memory count once."""
    return sum(
        tensor.numel() * tensor.element_size()
        for tensor in _distinct([*model.parameters(), *model.buffers()])
    )


def parameter_count(model: torch.nn.Module) -> int:
    """Number of parameters. Tied parameters count once."""
    return sum(tensor.numel() for tensor in _distinct(model.parameters()))


def safetensors_bytes(model: Any) -> int:
    """Exact size of the single safetensors file that ``model.save_pretrained`` would write.

    Of tied tensors transformers stores one. Raises PrunebenchError for an element type that
    `safetensors_io` does not write.
    """
    return layout(_saved(model)).nbytes


def save(
    model: Any,
    tokenizer: Any,
    folder: Path,
    *,
    made_by: Mapping[str, Any] | None = None,
    kept: KeptUnits | None = None,
) -> None:
    """Save model and tokenizer; ``folder`` is afterwards complete or, on an error, unchanged.

    An earlier checkpoint is replaced. ``made_by`` (method, options, ...) adds a `pruning.json`,
    which tells how to load a model whose layers have different shapes; ``kept`` adds which units
    these are. An adapter beside the model's linears goes into a folder of its own in it. Raises
    PrunebenchError if the folder holds something else, cannot be written, or the disk is full.
    """
    if made_by is None:
        with save_into(model, tokenizer, folder):
            return
    pruning = PruningFile(
        plain=is_plain(model),
        shape=shape_of(model),
        biases=added_biases(model),
        kept=kept,
        made_by=dict(made_by),
    )
    with save_into(model, tokenizer, folder, variant=None if pruning.plain else VARIANT) as aside:
        write_pruning_file(aside, pruning)


@contextmanager
def save_into(
    model: Any, tokenizer: Any, folder: Path, *, variant: str | None = None
) -> Iterator[Path]:
    """Save to a temporary folder and give its path to the block, which may add files.

    When the block ends, the temporary folder replaces ``folder``. Raises PrunebenchError as `save`
    does; ``folder`` is then unchanged.
    """
    target = save_target(folder)
    # Saving takes a while: look again at what is there before it is replaced.
    with atomic_replace(target, partial(check_replaceable, shown=folder)) as aside, quiet():
        aside.mkdir()
        with utf8_path(aside) as path:
            model.save_pretrained(path, variant=variant)
            if (adapter := attached(model)) is not None:
                adapter.save(path / FOLDER)
            if tokenizer is not None:
                tokenizer.save_pretrained(path)
        yield aside
        _readable(aside)


@contextmanager
def save_by_pieces(
    model: Any, tokenizer: Any, folder: Path, *, shard_bytes: int
) -> Iterator[tuple[Path, TensorFiles]]:
    """As `save_into`, for a model on the meta device whose tensors the block writes one by one.

    The block gets the folder and its weight files. A file holds at most ``shard_bytes`` unless one
    tensor is larger, as transformers does it.
    """
    target = save_target(folder)
    with scratch_folder(target) as beside:
        aside = beside / target.name
        with disk_errors(folder), quiet():
            aside.mkdir()
            with utf8_path(aside) as path:
                model.save_pretrained(path, state_dict={})  # no tensors: writes the config only
                if tokenizer is not None:
                    tokenizer.save_pretrained(path)
            entries = _new_shards(model, aside, shard_bytes)
        # Outside `disk_errors`: an OSError of the block itself says nothing about this folder.
        with TensorFiles(entries, write=True) as tensors:
            yield aside, tensors
        with disk_errors(folder):
            _readable(aside)
            move_over(aside, target, partial(check_replaceable, shown=folder))


def _new_shards(model: Any, folder: Path, shard_bytes: int) -> dict[str, StoredTensor]:
    """Create weight files of the right size without contents, and an index if there are several.

    Returns the tensors' locations by their names on disk.
    """
    from huggingface_hub import split_torch_state_dict_into_shards

    written = dict(_saved(model))  # in the order in which transformers fills shards
    stem, suffix = SINGLE.rsplit(".", 1)
    split = split_torch_state_dict_into_shards(
        written, filename_pattern=f"{stem}{{suffix}}.{suffix}", max_shard_size=shard_bytes
    )
    entries: dict[str, StoredTensor] = {}
    for file, inside in split.filename_to_tensors.items():
        entries |= new_file(folder / file, {name: written[name] for name in inside})
    if split.is_sharded:
        metadata = {"total_parameters": parameter_count(model), **split.metadata}
        index = {"metadata": metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(
            json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )
    return entries


def _readable(folder: Path) -> None:
    """Let everybody read the files; some writers create them for their owner only."""
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _saved(model: Any) -> Mapping[str, torch.Tensor]:
    return as_written(model, _kept(model))


def _kept(model: Any) -> dict[str, torch.Tensor]:
    """The tensors that are written, on the meta device.

    If several names share one memory, transformers drops the names that the model declares as tied.
    """
    aliases = set(getattr(model, "all_tied_weights_keys", None) or ())
    kept: dict[object, str] = {}
    state: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
    # Declared aliases come last, so that `setdefault` keeps another name if there is one.
    for name in sorted(state, key=lambda name: (name in aliases, name)):
        kept.setdefault(_identity(state[name]), name)
    names = set(kept.values())
    return {name: tensor.detach().to("meta") for name, tensor in state.items() if name in names}


def as_written(model: Any, state: dict[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """The names and shapes on disk; some families differ from those in memory (GPT-NeoX's head)."""
    from transformers.core_model_loading import revert_weight_conversion

    written: Mapping[str, torch.Tensor] = revert_weight_conversion(model, state)
    return written


def _distinct(tensors: Iterable[torch.Tensor]) -> Iterable[torch.Tensor]:
    return {_identity(tensor): tensor for tensor in tensors}.values()


def _identity(tensor: torch.Tensor) -> object:
    """A key that is equal for tensors over the same memory.

    A tensor without memory (meta or empty) is equal to itself only.
    """
    address = 0 if tensor.is_meta else tensor.data_ptr()
    return (tensor.device, address, tensor.dtype, tensor.shape) if address else id(tensor)
