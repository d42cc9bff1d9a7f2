"""What weight files say of themselves, read from their first bytes without torch: complete or not, how many parameters."""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunebench.errors import PrunebenchError

_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors format
_AGAIN = "copy or download the file again"
_LEGACY_BUFFERS = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")
_FLOATS = {"F64", "F32", "F16", "BF16"}

# GGUF: value type -> struct code of the scalars, and the two that have no fixed size
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
# GGUF: tensor type -> elements and bytes of one block (F32 F16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K to Q6_K F64 BF16)
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84), 11: (256, 110),
    12: (256, 144), 13: (256, 176), 14: (256, 210), 28: (1, 8), 30: (1, 2),
}  # fmt: skip
_ALIGNMENT = 32


@dataclass(frozen=True)
class Header:
    """What a weight file holds. ``parameters`` is None where the weights are packed (quantised)."""

    names: frozenset[str]
    parameters: int | None


@dataclass(frozen=True)
class StoredTensor:
    """Where a safetensors file holds a tensor. ``dtype`` is the format's name, ``start`` counts from the file's begin."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


def safetensors_header(path: Path, *, tied: bool = False) -> Header:
    """Check that a safetensors file is complete and count its parameters; ``tied``: a stored head is not counted.

    Raises PrunebenchError where the file is none or is truncated.
    """
    entries = safetensors_entries(path)
    sizes = {name: math.prod(entry.shape) for name, entry in entries.items()}
    dtypes = {name: entry.dtype for name, entry in entries.items()}
    return Header(frozenset(sizes), _count(sizes, dtypes, tied=tied))


def safetensors_entries(path: Path) -> dict[str, StoredTensor]:
    """Where each tensor lies. Raises PrunebenchError where the file is no safetensors file or is not complete."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or not 2 <= length <= _MAX_HEADER:
                raise PrunebenchError(f"{path} is not a safetensors file", hint=_AGAIN)
            text = file.read(length)
    except OSError as error:
        raise PrunebenchError(f"cannot read {path}: {error.strerror or error}") from error
    if len(text) < length:
        raise PrunebenchError(
            f"{path} is truncated: {size} bytes, its header alone has {8 + length}", hint=_AGAIN
        )
    try:
        tensors: dict[str, Any] = json.loads(text)
        tensors.pop("__metadata__", None)
        found = {name: _entry(path, 8 + length, entry) for name, entry in tensors.items()}
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise PrunebenchError(
            f"{path} is not a safetensors file: its header cannot be read", hint=_AGAIN
        ) from error
    end = max((entry.start + entry.nbytes for entry in found.values()), default=8 + length)
    if size != end:
        fault = "is truncated" if size < end else "is too long"
        raise PrunebenchError(f"{path} {fault}: {size} bytes, its header names {end}", hint=_AGAIN)
    return found


def _entry(path: Path, data: int, told: Mapping[str, Any]) -> StoredTensor:
    """``data`` is where the tensors' bytes begin; they are numbered from there."""
    start, end = told["data_offsets"]
    math.prod(told["shape"])  # numbers, or it is no header
    return StoredTensor(path, told["dtype"], tuple(told["shape"]), data + start, end - start)


def _count(sizes: Mapping[str, int], dtypes: Mapping[str, str], *, tied: bool) -> int | None:
    heads = {"lm_head.weight", "embed_out.weight"} if tied else set()
    counted = [name for name in sizes if name not in heads and not name.endswith(_LEGACY_BUFFERS)]
    if any(dtypes[name] not in _FLOATS for name in counted):
        return None
    return sum(sizes[name] for name in counted)


def gguf_header(path: Path) -> Header:
    """Check that a GGUF file (versions 2 and 3, little-endian) holds all the tensors it lists, and count their elements.

    Raises PrunebenchError where the file is none or is truncated.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise PrunebenchError(
                    f"{path} is not a GGUF file: it does not start with 'GGUF'", hint=_AGAIN
                )
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read_gguf(path, data)
    except OSError as error:
        raise PrunebenchError(f"cannot read {path}: {error.strerror or error}") from error
    except (struct.error, KeyError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise PrunebenchError(
            f"{path} is truncated or damaged: its header cannot be read", hint=_AGAIN
        ) from error


def _read_gguf(path: Path, data: mmap.mmap) -> Header:
    cursor = _Cursor(data, 4)
    version = cursor.scalar("I")
    if version not in {2, 3}:
        raise PrunebenchError(f"{path} has GGUF version {version}; versions 2 and 3 can be read")
    tensors, pairs = cursor.scalar("Q"), cursor.scalar("Q")
    alignment = _ALIGNMENT
    for _ in range(pairs):
        key, kind = cursor.text(), cursor.scalar("I")
        if key == "general.alignment":
            alignment = cursor.scalar(_SCALARS[kind])
        else:
            cursor.skip_value(kind)
    sizes: dict[str, int] = {}
    end = 0  # of the tensors' bytes, counted from the start of their section
    for _ in range(tensors):
        name = cursor.text()
        sizes[name] = math.prod(cursor.scalar("Q") for _ in range(cursor.scalar("I")))
        elements, width = _BLOCKS.get(
            cursor.scalar("I"), (1, 0)
        )  # of a type not known here only the start is checked
        end = max(end, cursor.scalar("Q") + sizes[name] // elements * width)
    needed = -(-cursor.place // alignment) * alignment + end
    if tensors and len(data) < needed:
        raise PrunebenchError(
            f"{path} is truncated: {len(data)} bytes, its tensors need {needed}", hint=_AGAIN
        )
    return Header(
        frozenset(sizes), sum(size for name, size in sizes.items() if not name.startswith("rope_"))
    )


class _Cursor:
    """Reads one value after another from GGUF's little-endian bytes."""

    def __init__(self, data: mmap.mmap, place: int) -> None:
        self.data, self.place = data, place

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self.data, self.place)
        self.place += struct.calcsize(f"<{code}")
        return value

    def text(self) -> str:
        length = self.scalar("Q")
        start, self.place = self.place, self.place + length
        return self.data[start : self.place].decode("utf-8")

    def skip_value(self, kind: int) -> None:
        if kind == _STRING:
            length = self.scalar("Q")
            self.place += length
        elif kind == _ARRAY:
            element, count = self.scalar("I"), self.scalar("Q")
            if element in _SCALARS:
                self.place += count * struct.calcsize(f"<{_SCALARS[element]}")
            else:
                for _ in range(count):
                    self.skip_value(element)
        else:
            self.place += struct.calcsize(f"<{_SCALARS[kind]}")
