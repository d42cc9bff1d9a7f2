"""Read a GGUF file's header without torch: whether it is complete, its family and parameters.

Layout of the format (versions 2 and 3, little-endian; u32 and u64 are unsigned integers):

    'GGUF', version u32, number of tensors u64, number of key-value pairs u64
    per pair:    key string, type u32, value
    per tensor:  name string, number of dimensions u32, each dimension u64, type u32, offset u64
    padding to a multiple of the alignment (key general.alignment, else 32)
    data         the tensors' blocks; offsets count from here

A string is its length u64 and its UTF-8 bytes. An array is its elements' type u32, their number u64
and the elements.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from prunebench.errors import PrunebenchError
from prunebench.model.wrong_file import AGAIN, wrong_file

# Type of a value -> struct code, for the types of fixed size; strings and arrays have none.
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
# Type of a tensor -> (elements, bytes) of one block, because quantised weights are stored in
# blocks: F32 F16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0, Q2_K to Q6_K, F64 BF16
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),
    28: (1, 8), 30: (1, 2),
}  # fmt: skip
_UNKNOWN_BLOCK = (1, 0)  # of a type not in the table, check only that the tensor's start exists
_ALIGNMENT = 32
# What is read of the key-value pairs; the others are skipped.
_KEYS = {"general.alignment", "general.architecture", "general.type", "split.count"}
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


class GGUFHeader(NamedTuple):
    """What a GGUF file says about its model."""

    architecture: str | None
    """The family, by the name that llama.cpp gives it; None if the file has none."""
    parameters: int


def read_gguf_header(path: Path) -> GGUFHeader:
    """The header of a GGUF file that holds all tensors it lists.

    Raises PrunebenchError if the file is not a complete GGUF file of version 2 or 3.
    """
    try:
        with path.open("rb") as file:
            start = file.read(64)
            if not start.startswith(b"GGUF"):
                raise wrong_file(path, start, "a GGUF file")
            # Mapped: a vocabulary in the header can take megabytes, which are skipped.
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read(path, data)
    except OSError as error:
        raise PrunebenchError(f"cannot read {path}: {error.strerror or error}") from error
    except (
        struct.error,
        KeyError,
        ValueError,
        TypeError,
        OverflowError,
        ZeroDivisionError,
    ) as error:
        raise PrunebenchError(
            f"{path} is truncated or damaged: its header cannot be read", hint=AGAIN
        ) from error


def _read(path: Path, data: mmap.mmap) -> GGUFHeader:
    cursor = _Cursor(data, 4)
    version = cursor.scalar("I")
    if version not in {2, 3}:
        raise PrunebenchError(f"{path} has GGUF version {version}; versions 2 and 3 can be read")
    tensors, pairs = cursor.scalar("Q"), cursor.scalar("Q")
    values: dict[str, Any] = {}
    for _ in range(pairs):
        key, kind = cursor.text(), cursor.scalar("I")
        if key not in _KEYS:
            cursor.skip_value(kind)
        elif kind == _STRING:
            values[key] = cursor.text()
        else:
            values[key] = cursor.scalar(_SCALARS[kind])
    _check_whole_model(path, values, tensors)
    parameters = 0
    end = 0  # of the last tensor's bytes, counted from the start of the data
    for _ in range(tensors):
        name = cursor.text()
        size = math.prod(cursor.scalar("Q") for _ in range(cursor.scalar("I")))
        elements, nbytes = _BLOCKS.get(cursor.scalar("I"), _UNKNOWN_BLOCK)
        end = max(end, cursor.scalar("Q") + size // elements * nbytes)
        if not name.startswith("rope_"):  # tables of rotary frequencies are not trained
            parameters += size
    alignment = values.get("general.alignment", _ALIGNMENT)
    needed = -(-cursor.offset // alignment) * alignment + end  # rounded up to the alignment
    if tensors and len(data) < needed:
        raise PrunebenchError(
            f"{path} is truncated: {len(data)} bytes, its tensors need {needed}", hint=AGAIN
        )
    architecture = values.get("general.architecture")
    return GGUFHeader(architecture if isinstance(architecture, str) else None, parameters)


def _check_whole_model(path: Path, values: Mapping[str, Any], tensors: int) -> None:
    """Raise PrunebenchError if the file holds a part of a model, or something else."""
    named = _PART.search(path.name.lower())
    parts = max(values.get("split.count", 1), int(named[2]) if named else 1)
    if parts > 1:
        raise PrunebenchError(
            f"{path} is one of the {parts} parts of a model",
            hint="join them with llama.cpp: llama-gguf-split --merge FIRST_PART MODEL.gguf",
        )
    if (kind := values.get("general.type", "model")) != "model":
        raise PrunebenchError(
            f"{path} holds no model but a part for one, of the kind '{kind}'",
            hint="name the GGUF file of the language model",
        )
    if not tensors:
        raise PrunebenchError(
            f"{path} holds no weights", hint="name the GGUF file that has the model's weights"
        )


class _Cursor:
    """Reads one value after another from ``data``."""

    def __init__(self, data: mmap.mmap, offset: int) -> None:
        self.data, self.offset = data, offset

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self.data, self.offset)
        self.offset += struct.calcsize(f"<{code}")
        return value

    def text(self) -> str:
        length = self.scalar("Q")
        start, self.offset = self.offset, self.offset + length
        return self.data[start : self.offset].decode("utf-8")

    def skip_value(self, kind: int) -> None:
        if kind == _STRING:
            length = self.scalar("Q")
            self.offset += length
        elif kind == _ARRAY:
            element, count = self.scalar("I"), self.scalar("Q")
            if element in _SCALARS:
                # One step for all elements: a vocabulary has a hundred thousand scores.
                self.offset += count * struct.calcsize(f"<{_SCALARS[element]}")
            else:
                for _ in range(count):
                    self.skip_value(element)
        else:
            self.offset += struct.calcsize(f"<{_SCALARS[kind]}")
