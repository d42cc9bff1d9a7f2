"""A model that is never in memory as a whole: its layers are read from the weight files one at a time, and written anew.

The model itself stays on the meta device. Whoever needs a part of it borrows that part, and gives it back.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from prunebench.callbacks import ignore
from prunebench.errors import PrunebenchError
from prunebench.model.anatomy import anatomy
from prunebench.model.files import disk_errors
from prunebench.model.folder import Checkpoint
from prunebench.model.safetensors_header import StoredTensor, safetensors_entries
from prunebench.model.safetensors_io import TensorFiles

Watch = Callable[[int, torch.nn.Module], None]


class _Slot(NamedTuple):
    """Where a module keeps a tensor."""

    table: dict[str, Any]
    name: str
    empty: torch.Tensor


class StreamedModel:
    """Lends the parts of ``model``, which is on the meta device, from the tensors in its checkpoint.

    ``source`` holds them by their names there, ``target``, if there is one, takes those of changed layers by their names in the
    model. Parts lie on ``device`` while they are lent. ``read(index, layer)`` is called when a layer is lent
    for the first time, ``changed(index, layer)`` before one is written.
    """

    def __init__(
        self,
        model: Any,
        source: TensorFiles,
        target: TensorFiles | None = None,
        *,
        device: str = "cpu",
        read: Watch = ignore,
        changed: Watch = ignore,
    ) -> None:
        self.model = model
        self._source, self._target = source, target
        self._device = torch.device(device)
        self._read_watch, self._changed_watch = read, changed
        self._parts = anatomy(model)
        self._stored = _stored_names(model, source)
        self._state: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
        self._layers = [
            self._names(f"{self._parts.layers_path}.{index}.")
            for index in range(len(self._parts.layers))
        ]
        self._seen: set[int] = set()
        self.written: set[int] = set()
        """The layers that were written to ``target``."""

    @contextmanager
    def frame(self) -> Iterator[None]:
        """Within, everything that the decoder has besides its layers is in memory: embeddings, positions, norms."""
        inside = {name for names in self._layers for name in names}
        names = [
            name for name in self._names(f"{self._parts.family.decoder}.") if name not in inside
        ]
        with self._lent(names):
            yield

    @contextmanager
    def layer(self, index: int, *, changes: bool) -> Iterator[None]:
        """Within, this layer is in memory; afterwards it is written, where it ``changes`` and the block ended well.

        Raises PrunebenchError where a tensor was given another shape or type, and where the disk is full.
        """
        names = self._layers[index]
        layer = self._parts.layers[index]
        with self._lent(names, written=index in self.written):
            if index not in self._seen:
                self._seen.add(index)
                self._read_watch(index, layer)
            yield
            if changes and self._target is not None:
                self._changed_watch(index, layer)
                for name in names:
                    self._write(name)
                self.written.add(index)

    def copy_rest(self, check: Callable[[str, torch.Tensor], None]) -> None:
        """Copy to ``target`` what is in no layer, some elements at a time; ``check(name, elements)`` sees all of them."""
        assert self._target is not None
        inside = {name for names in self._layers for name in names}
        for name in [name for name in self._target.entries if name not in inside]:
            dtype = self._state[name].dtype
            for start, piece in self._source.pieces(self._stored[name]):
                elements = piece.to(dtype)
                check(name, elements)
                with disk_errors(self._target.entries[name].path):
                    self._target.write(name, elements, start)

    def _names(self, prefix: str) -> list[str]:
        return [name for name in self._state if name.startswith(prefix)]

    @contextmanager
    def _lent(self, names: Sequence[str], *, written: bool = False) -> Iterator[None]:
        slots: list[_Slot] = []
        try:
            for name in names:
                slot = self._slot(name)
                slots.append(slot)
                slot.table[slot.name] = self._read(name, written=written)
            yield
        finally:
            for slot in slots:
                slot.table[slot.name] = slot.empty
            _give_back_memory()

    def _slot(self, name: str) -> _Slot:
        path, _, leaf = name.rpartition(".")
        module = self.model.get_submodule(path)
        table = module._parameters if leaf in module._parameters else module._buffers
        return _Slot(table, leaf, self._state[name])

    def _read(self, name: str, *, written: bool) -> torch.Tensor:
        empty = self._state[name]
        stored = (
            self._target.read(name)
            if written and self._target
            else self._source.read(self._stored[name])
        )
        tensor = stored.to(device=self._device, dtype=empty.dtype)
        return (
            torch.nn.Parameter(tensor, requires_grad=False)
            if isinstance(empty, torch.nn.Parameter)
            else tensor
        )

    def _write(self, name: str) -> None:
        slot = self._slot(name)
        tensor = slot.table.get(slot.name)
        if tensor is None or (tensor.shape, tensor.dtype) != (slot.empty.shape, slot.empty.dtype):
            raise PrunebenchError(
                f"{name} has another shape or type than before, which a checkpoint that is pruned layer by layer cannot take",
                hint="prune the model without --stream",
            )
        assert self._target is not None
        with disk_errors(self._target.entries[name].path):
            self._target.write(name, tensor)


def _give_back_memory() -> None:
    """Return to the system what the C library keeps of freed memory: after some layers that is several layers' worth."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # glibc has it
        trim(0)


def open_tensors(checkpoint: Checkpoint) -> TensorFiles:
    """The tensors of a checkpoint's weight files, by their names there."""
    found: dict[str, StoredTensor] = {}
    for path in checkpoint.weights:
        found |= safetensors_entries(path)
    return TensorFiles(found)


def _stored_names(model: Any, source: TensorFiles) -> dict[str, str]:
    """The name in the weight files of each of the model's tensors; tied ones may be stored under any of their names.

    Raises PrunebenchError where transformers computes a tensor from several.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    state: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
    steps = get_model_conversion_mapping(model)
    renamings = [step for step in steps if isinstance(step, WeightRenaming)]
    converters = [step for step in steps if isinstance(step, WeightConverter)]
    prefix = model.base_model_prefix
    found: dict[str, str] = {}
    for stored in source.entries:
        name, converter = rename_source_key(stored, renamings, converters, prefix, state)
        if name not in state and stored in state:
            name, converter = rename_source_key(stored, [], [], prefix, state)
        if name in state and (
            converter is not None or source.entries[stored].shape != tuple(state[name].shape)
        ):
            raise PrunebenchError(
                f"{stored} lies on disk in another form than in memory",
                hint="a model of this family must be loaded as a whole",
            )
        found[name] = stored
    shared: dict[int, str] = {}
    for name, tensor in state.items():
        if name in found:
            shared.setdefault(id(tensor), found[name])
    return {name: found.get(name) or shared[id(tensor)] for name, tensor in state.items()}
