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
from prunebench.model.wrong_file import AGAIN, wrong_file

_MAX_HEADER = 100_000_000  # bytes; the limit of the format, so a wrong length allocates no more
# Rotary tables and causal masks that older releases of transformers stored beside the weights.
_LEGACY_BUFFERS = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")
_HEADS = ("lm_head.weight", "embed_out.weight")
EMBEDDINGS = ("embed_tokens.weight", "embed_in.weight")
_PIECE = 1 << 20  # bytes that are compared at a time
_FLOATS = {"F64", "F32", "F16", "BF16"}
# Bytes of an element; a type that is not in the table is not checked.
_WIDTHS = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2,
    "U16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip


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
    if not all(map(is_float, counted.values())):
        return None
    total = sum(math.prod(tensor.shape) for tensor in counted.values())
    heads = [tensor for name, tensor in counted.items() if name in _HEADS]
    embeddings = [tensor for name, tensor in counted.items() if name.endswith(EMBEDDINGS)]
    if tied and heads and embeddings and _equal(heads[0], embeddings[0]):
        total -= math.prod(heads[0].shape)
    return total


def is_float(tensor: StoredTensor) -> bool:
    """Whether its elements are plain floating point numbers, as torch computes with them."""
    return tensor.dtype in _FLOATS


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
            f"{path} is not a safetensors file: its header cannot be read", hint=AGAIN
        ) from error
    end = max((entry.start + entry.nbytes for entry in found.values()), default=data)
    if size != end:
        fault = "is truncated" if size < end else "is too long"
        raise PrunebenchError(f"{path} {fault}: {size} bytes, its header names {end}", hint=AGAIN)
    _check_layout(path, data, found)
    return found


def _check_layout(path: Path, data: int, tensors: Mapping[str, StoredTensor]) -> None:
    """Every tensor has the bytes that its shape needs, and they follow each other without gaps."""
    end = data
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        width = _WIDTHS.get(tensor.dtype)
        needed = tensor.nbytes if width is None else width * math.prod(tensor.shape)
        if tensor.start != end or tensor.nbytes != needed:
            raise PrunebenchError(
                f"{path} is damaged: its header gives {name} {tensor.nbytes} bytes from byte "
                f"{tensor.start} on, and not {needed} from byte {end} on",
                hint=AGAIN,
            )
        end += tensor.nbytes


def _read_header(path: Path) -> tuple[int, bytes]:
    """Size of the file in bytes, and the JSON text of its header."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or not 2 <= length <= _MAX_HEADER:
                raise wrong_file(path, prefix + file.read(56), "a safetensors file")
            text = file.read(length)
    except OSError as error:
        raise PrunebenchError(f"cannot read {path}: {error.strerror or error}") from error
    if len(text) < length:
        raise PrunebenchError(
            f"{path} is truncated: {size} bytes, its header alone has {8 + length}", hint=AGAIN
        )
    return size, text


def _entry(path: Path, data: int, entry: Mapping[str, Any]) -> StoredTensor:
    start, end = entry["data_offsets"]
    math.prod(entry["shape"])  # raises TypeError unless the shape is a list of numbers
    return StoredTensor(path, entry["dtype"], tuple(entry["shape"]), data + start, end - start)
