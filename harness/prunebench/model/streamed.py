"""A model that is never in memory as a whole: layers are read from the weight files one at a time.

The model itself stays on the meta device. A caller borrows one part of it at a time; a changed
layer is written to new weight files when it is given back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from prunebench.callbacks import ignore
from prunebench.errors import PrunebenchError
from prunebench.isolation.heap import release_freed_memory
from prunebench.model.anatomy import anatomy
from prunebench.model.checkpoint import as_written
from prunebench.model.files import disk_errors
from prunebench.model.folder import Checkpoint
from prunebench.model.safetensors_io import TensorFiles
from prunebench.model.stored_forms import StoredForms

Watch = Callable[[int, torch.nn.Module], None]


class _Slot(NamedTuple):
    """The entry of a module's parameters or buffers that holds a tensor."""

    table: dict[str, Any]
    name: str
    empty: torch.Tensor
    """The tensor on the meta device that is there while nothing is lent."""


class StreamedModel:
    """Lends the parts of ``model``, which is on the meta device, with their weights.

    ``source`` and ``target`` hold tensors by their names on disk; the second, if given, receives
    those of changed layers. Lent parts are on ``device``.
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
        self._read_watch, self._change_watch = read, changed
        self._parts = anatomy(model)
        self._stored = StoredForms(model, source)
        self._written = None if target is None else StoredForms(model, target)
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
                self._change_watch(index, layer)
                self._write({name: self._changed(name) for name in names})
                self.written.add(index)

    def stored_pieces(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All weights, in the model's type: some elements at a time, with their stored name."""
        seen: set[str] = set()
        for name, tensor in self._state.items():
            for stored in self._stored.stored_names(name):
                if stored not in seen:
                    seen.add(stored)
                    for _, piece in self._source.pieces(stored):
                        yield stored, piece.to(tensor.dtype)

    def copy_rest(self) -> None:
        """Copy all tensors outside the layers to ``target``, some elements at a time."""
        assert self._target is not None and self._written is not None
        # Several names of the model may share a stored tensor (tied), and one may need several
        # (joined), so what is done is kept by the names on disk.
        inside = {name for names in self._layers for name in names}
        done = {stored for name in inside for stored in self._written.stored_names(name)}
        for name, tensor in self._state.items():
            goals = set(self._written.stored_names(name)) - done
            if name in inside or not goals:
                continue
            done |= goals
            if name not in self._stored.plain or name not in self._written.plain:
                self._write(self._read([name], self._stored))
                continue
            goal = self._written.plain[name]
            for start, piece in self._source.pieces(self._stored.plain[name]):
                with disk_errors(self._target.entries[goal].path):
                    self._target.write(goal, piece.to(tensor.dtype), start)

    def _names(self, prefix: str) -> list[str]:
        return [name for name in self._state if name.startswith(prefix)]

    @contextmanager
    def _lent(self, names: Sequence[str], *, written: bool = False) -> Iterator[None]:
        slots: list[_Slot] = []
        try:
            # Read a written layer from ``target``, so that later steps see its changes.
            forms = self._written if written and self._written else self._stored
            for name, tensor in self._read(names, forms).items():
                slot = self._slot(name)
                slots.append(slot)
                slot.table[slot.name] = tensor
            yield
        finally:
            # Also after an error: whatever the caller put there, the layer is empty again.
            for slot in slots:
                slot.table[slot.name] = slot.empty
            release_freed_memory()  # or memory grows by several layers

    def _slot(self, name: str) -> _Slot:
        path, _, leaf = name.rpartition(".")
        module = self.model.get_submodule(path)
        table = module._parameters if leaf in module._parameters else module._buffers
        return _Slot(table, leaf, self._state[name])

    def _read(self, names: Sequence[str], forms: StoredForms) -> dict[str, torch.Tensor]:
        """These tensors as the model has them: on its device, in its type."""
        found = {}
        for name, stored in forms.read(names).items():
            empty = self._state[name]
            tensor = stored.to(device=self._device, dtype=empty.dtype)
            is_parameter = isinstance(empty, torch.nn.Parameter)
            found[name] = (
                torch.nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor
            )
        return found

    def _changed(self, name: str) -> torch.Tensor:
        """A lent tensor. Raises PrunebenchError if it has another shape or type than before."""
        slot = self._slot(name)
        tensor: torch.Tensor | None = slot.table.get(slot.name)
        if tensor is None or (tensor.shape, tensor.dtype) != (slot.empty.shape, slot.empty.dtype):
            raise PrunebenchError(
                f"{name} has another shape or type than before; pruning layer by layer keeps both",
                hint="prune the model without --stream",
            )
        return tensor

    def _write(self, tensors: dict[str, torch.Tensor]) -> None:
        """Write tensors of the model to ``target``, in the form of the files."""
        assert self._target is not None
        for name, tensor in as_written(self.model, tensors).items():
            with disk_errors(self._target.entries[name].path):
                self._target.write(name, tensor)


def open_tensors(checkpoint: Checkpoint) -> TensorFiles:
    """The tensors of a checkpoint's weight files, by their names in the files."""
    return TensorFiles(checkpoint.tensors)
