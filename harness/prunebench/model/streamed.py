"""A model that is never in memory as a whole: layers are read from the weight files one at a time.

The model itself stays on the meta device. A caller borrows one part of it at a time; a changed
layer is written to new weight files when it is given back.
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
from prunebench.model.safetensors_io import TensorFiles

Watch = Callable[[int, torch.nn.Module], None]


class _Slot(NamedTuple):
    """The entry of a module's parameters or buffers that holds a tensor."""

    table: dict[str, Any]
    name: str
    empty: torch.Tensor
    """The tensor on the meta device that is there while nothing is lent."""


class StreamedModel:
    """Lends the parts of ``model``, which is on the meta device, with their weights.

    ``source`` holds the tensors by their names in the checkpoint. ``target``, if given, receives
    the tensors of changed layers by their names in the model. Lent parts are on ``device``.
    ``read(index, layer)`` is called when a layer is lent for the first time, ``changed(index,
    layer)`` before a layer is written.
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
        """Indices of the layers that were written to ``target``."""

    @contextmanager
    def frame(self) -> Iterator[None]:
        """Lend what the decoder has besides its layers: embeddings, positions, norms."""
        inside = {name for names in self._layers for name in names}
        names = [name for name in self._names(f"{self._parts.decoder_path}.") if name not in inside]
        with self._lent(names):
            yield

    @contextmanager
    def layer(self, index: int, *, changes: bool) -> Iterator[None]:
        """Lend one layer. If ``changes``, write it to ``target`` when the block ends.

        A block that raises writes nothing. Raises PrunebenchError if a tensor got another shape or
        type, or if the disk is full.
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

    def stored_pieces(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All weights, in the model's type: some elements at a time, with their stored name."""
        for name, tensor in self._state.items():
            if name in self._stored:
                for _, piece in self._source.pieces(self._stored[name]):
                    yield self._stored[name], piece.to(tensor.dtype)

    def copy_rest(self) -> None:
        """Copy all tensors outside the layers to ``target``, some elements at a time."""
        assert self._target is not None
        inside = {name for names in self._layers for name in names}
        for name in [name for name in self._target.entries if name not in inside]:
            dtype = self._state[name].dtype
            for start, piece in self._source.pieces(self._stored[name]):
                with disk_errors(self._target.entries[name].path):
                    self._target.write(name, piece.to(dtype), start)

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
            # Also after an error: whatever the caller put there, the layer is empty again.
            for slot in slots:
                slot.table[slot.name] = slot.empty
            _release_memory()

    def _slot(self, name: str) -> _Slot:
        path, _, leaf = name.rpartition(".")
        module = self.model.get_submodule(path)
        table = module._parameters if leaf in module._parameters else module._buffers
        return _Slot(table, leaf, self._state[name])

    def _read(self, name: str, *, written: bool) -> torch.Tensor:
        empty = self._state[name]
        # Read a written layer from ``target``, so that later steps see its changes.
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
                f"{name} has another shape or type than before; pruning layer by layer keeps both",
                hint="prune the model without --stream",
            )
        assert self._target is not None
        with disk_errors(self._target.entries[name].path):
            self._target.write(name, tensor)


def _release_memory() -> None:
    """Return freed memory to the system.

    The C library keeps some of it for later; without this, memory grows by several layers.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # only glibc has it
        trim(0)


def open_tensors(checkpoint: Checkpoint) -> TensorFiles:
    """The tensors of a checkpoint's weight files, by their names in the files."""
    return TensorFiles(checkpoint.tensors)


def _stored_names(model: Any, source: TensorFiles) -> dict[str, str]:
    """Name in the model -> name in the weight files, of each tensor.

    Tied tensors may be stored under any of their names. Raises PrunebenchError if transformers
    computes a tensor from several stored ones.
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
        # A rule may rename what already has the model's own name; that one wins.
        if name not in state and stored in state:
            name, converter = rename_source_key(stored, [], [], prefix, state)
        if name in state and (
            converter is not None or source.entries[stored].shape != tuple(state[name].shape)
        ):
            raise PrunebenchError(
                f"{stored} has another form on disk than in memory",
                hint="a model of this family must be loaded as a whole",
            )
        found[name] = stored
    shared: dict[int, str] = {}  # identity of a tied tensor -> stored name
    for name, tensor in state.items():
        if name in found:
            shared.setdefault(id(tensor), found[name])
    return {name: found.get(name) or shared[id(tensor)] for name, tensor in state.items()}
