"""Write safetensors files, and read and write their tensors one at a time.

`safetensors_header` describes the layout of the format. Order of tensors and padding are those of
transformers, so that the exact size of a file is known before it is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

import torch

from prunebench.errors import PrunebenchError
from prunebench.model.safetensors_header import StoredTensor

# Element type -> the format's name. The order matters: a file holds tensors of wider types first,
# so that every tensor starts at a multiple of its element size.
NAMES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ORDER = {dtype: rank for rank, dtype in enumerate(NAMES)}
_DTYPES = {name: dtype for dtype, name in NAMES.items()}

PIECE = 1 << 22
"""Elements that are copied at a time, to bound memory: 16 MiB of float32."""


class Layout(NamedTuple):
    """The bytes of a file before its tensors, and the location of each tensor."""

    header: bytes
    spans: dict[str, tuple[int, int]]
    """Offset from the start of the file and number of bytes, by name."""

    @property
    def nbytes(self) -> int:
        """Bytes of the whole file."""
        return max((start + size for start, size in self.spans.values()), default=len(self.header))


def layout(tensors: Mapping[str, torch.Tensor]) -> Layout:
    """The file that transformers would write for ``tensors``, which may be on the meta device.

    Raises PrunebenchError for an element type that is not in `NAMES`.
    """
    unknown = sorted(
        {str(tensor.dtype) for tensor in tensors.values()} - {str(dtype) for dtype in NAMES}
    )
    if unknown:
        raise PrunebenchError(
            f"the size of a safetensors file with {', '.join(unknown)} is not known"
        )
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (_ORDER[item[1].dtype], item[0])):
        start, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors start at a multiple of 8 bytes
    header = len(text).to_bytes(8, "little") + text
    del entries["__metadata__"]
    offsets = {name: entry["data_offsets"] for name, entry in entries.items()}
    return Layout(
        header, {name: (len(header) + start, end - start) for name, (start, end) in offsets.items()}
    )


def new_file(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, StoredTensor]:
    """Create a file for ``tensors`` without their contents; return their locations in it."""
    planned = layout(tensors)
    with path.open("wb") as file:
        file.write(planned.header)
        file.truncate(planned.nbytes)  # grows the file without writing to the disk
    return {
        name: StoredTensor(path, NAMES[tensors[name].dtype], tuple(tensors[name].shape), *span)
        for name, span in planned.spans.items()
    }


class TensorFiles:
    """The tensors of one or several safetensors files by name; a context manager.

    A file is opened when one of its tensors is first needed, and closed when the context ends.
    Tensors are read and written by offset and not mapped, because mapped pages count as memory of
    this process.
    """

    def __init__(self, entries: Mapping[str, StoredTensor], *, write: bool = False) -> None:
        self.entries = entries
        self._mode = "r+b" if write else "rb"
        self._files: dict[Path, IO[bytes]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._files.clear()
        self._stack.close()

    def read(self, name: str) -> torch.Tensor:
        """The tensor, on the CPU.

        Raises PrunebenchError if its type is unknown or the file has become shorter.
        """
        entry = self.entries[name]
        tensor = torch.empty(entry.shape, dtype=self._dtype(name))
        self._fill(name, tensor, 0)
        return tensor

    def pieces(self, name: str) -> Iterator[tuple[int, torch.Tensor]]:
        """The elements in order: (index of the first one, flat tensor of up to `PIECE`)."""
        dtype = self._dtype(name)
        count = self.entries[name].nbytes // dtype.itemsize
        for start in range(0, count, PIECE):
            piece = torch.empty(min(PIECE, count - start), dtype=dtype)
            self._fill(name, piece, start)
            yield start, piece

    def write(self, name: str, tensor: torch.Tensor, start: int = 0) -> None:
        """Write a tensor, or a part that begins at element ``start``; the types must agree."""
        file = self._at(name, start * tensor.element_size())
        left = _bytes(tensor.detach().cpu().contiguous())
        while left:  # an unbuffered file may take only some of the bytes
            left = left[file.write(left) :]

    def _fill(self, name: str, tensor: torch.Tensor, start: int) -> None:
        entry = self.entries[name]
        try:
            file = self._at(name, start * tensor.element_size())
            left = _bytes(tensor)  # read straight into the tensor's memory
            while left and (count := file.readinto(left)):  # type: ignore[attr-defined]
                left = left[count:]
        except OSError as error:
            raise PrunebenchError(f"cannot read {entry.path}: {error.strerror or error}") from error
        if left:
            raise PrunebenchError(
                f"{entry.path} has become shorter", hint="copy or download the file again"
            )

    def _at(self, name: str, offset: int) -> IO[bytes]:
        entry = self.entries[name]
        if entry.path not in self._files:
            self._files[entry.path] = self._stack.enter_context(
                entry.path.open(self._mode, buffering=0)
            )
        self._files[entry.path].seek(entry.start + offset)
        return self._files[entry.path]

    def _dtype(self, name: str) -> torch.dtype:
        entry = self.entries[name]
        if entry.dtype not in _DTYPES:
            raise PrunebenchError(
                f"{entry.path}: {name} is stored as {entry.dtype}",
                hint=f"only plain weights are read piece by piece: {', '.join(_DTYPES)}",
            )
        return _DTYPES[entry.dtype]


def _bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor; numpy has no bfloat16, so look at it as bytes."""
    flat: Any = tensor.view(-1).view(torch.uint8).numpy()
    return memoryview(flat) if tensor.numel() else memoryview(b"")
