"""Read a safetensors file's header without torch: whether it is complete, and its tensors.

Layout of the format:

    8 bytes   length of the header, unsigned, little-endian
    header    JSON object: tensor name -> {"dtype": "F32", "shape": [..], "data_offsets": [a, b]},
              and optionally "__metadata__" -> strings
    data      the tensors' bytes, row-major and little-endian, without gaps; offsets count from here
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunebench.errors import PrunebenchError

_MAX_HEADER = 100_000_000  # bytes; the limit of the format, so a wrong length allocates no more
_AGAIN = "copy or download the file again"
# Rotary tables and causal masks that older releases of transformers stored beside the weights.
_LEGACY_BUFFERS = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")
_HEADS = ("lm_head.weight", "embed_out.weight")
_EMBEDDINGS = ("embed_tokens.weight", "embed_in.weight")
_PIECE = 1 << 20  # bytes that are compared at a time
_FLOATS = {"F64", "F32", "F16", "BF16"}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file."""

    path: Path
    dtype: str
    """The format's name of the element type, such as 'F32'."""
    shape: tuple[int, ...]
    start: int
    """Offset of the first byte from the start of the file."""
    nbytes: int


def parameter_count(tensors: Mapping[str, StoredTensor], *, tied: bool) -> int | None:
    """Number of parameters of the model that these tensors make; None if they are packed.

    ``tied`` says that the config ties the head to the embeddings. A head that is stored all the
    same counts unless it is the embeddings a second time: transformers then unties it. Raises
    PrunebenchError if a file cannot be read.
    """
    counted = {
        name: tensor for name, tensor in tensors.items() if not name.endswith(_LEGACY_BUFFERS)
    }
    if any(tensor.dtype not in _FLOATS for tensor in counted.values()):
        return None
    total = sum(math.prod(tensor.shape) for tensor in counted.values())
    heads = [tensor for name, tensor in counted.items() if name in _HEADS]
    embeddings = [tensor for name, tensor in counted.items() if name.endswith(_EMBEDDINGS)]
    if tied and heads and embeddings and _equal(heads[0], embeddings[0]):
        total -= math.prod(heads[0].shape)
    return total


def _equal(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors have the same bytes; stops reading at the first difference."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    try:
        with one.path.open("rb") as a, other.path.open("rb") as b:
            a.seek(one.start)
            b.seek(other.start)
            sizes = (min(_PIECE, one.nbytes - done) for done in range(0, one.nbytes, _PIECE))
            return all(a.read(size) == b.read(size) for size in sizes)
    except OSError as error:
        raise PrunebenchError(f"cannot read {one.path}: {error.strerror or error}") from error


def safetensors_entries(path: Path) -> dict[str, StoredTensor]:
    """All tensors of a file by name.

    Raises PrunebenchError if the file is not a safetensors file or is not complete.
    """
    size, text = _read_header(path)
    data = 8 + len(text)  # the tensors' bytes begin here
    try:
        header: dict[str, Any] = json.loads(text)
        header.pop("__metadata__", None)
        found = {name: _entry(path, data, entry) for name, entry in header.items()}
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise PrunebenchError(
            f"{path} is not a safetensors file: its header cannot be read", hint=_AGAIN
        ) from error
    end = max((entry.start + entry.nbytes for entry in found.values()), default=data)
    if size != end:
        fault = "is truncated" if size < end else "is too long"
        raise PrunebenchError(f"{path} {fault}: {size} bytes, its header names {end}", hint=_AGAIN)
    return found


def _read_header(path: Path) -> tuple[int, bytes]:
    """Size of the file in bytes, and the JSON text of its header."""
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
    return size, text


def _entry(path: Path, data: int, entry: Mapping[str, Any]) -> StoredTensor:
    start, end = entry["data_offsets"]
    math.prod(entry["shape"])  # raises TypeError unless the shape is a list of numbers
    return StoredTensor(path, entry["dtype"], tuple(entry["shape"]), data + start, end - start)
