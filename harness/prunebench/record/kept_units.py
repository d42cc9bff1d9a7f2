"""Which units of the dense model a pruned model still has: layers, KV groups and channels.

Sets of indices are texts, so that a file stays small and people can read it:

    0-3,7 of 12            these indices of a dense model that has 12 of them
    none of 12             none of them
    bits of 11008: eJz...  one bit per index, lowest first, in base64

`index_text` writes the shorter of the first and the last form. So a set never takes more than about
one character for six units, however scattered they are.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Sequence

from pydantic import Field

from prunebench.schema import Part

_RANGES = re.compile(r"(?P<set>none|\d+(-\d+)?(,\d+(-\d+)?)*)( of (?P<total>\d+))?")
_BITS = re.compile(r"bits of (?P<total>\d+): (?P<bits>[A-Za-z0-9+/]*={0,2})")
_MOST = 10_000_000
"""Units that a set may count; no model has so many, and a typing error must not fill the memory."""


class KeptUnits(Part):
    """The units that stayed, by their indices in the dense model: the model before the method."""

    layers: str = Field(description="decoder layers, e.g. '0-3,5-11 of 12'")
    attention: dict[int, str | None] = Field(
        default_factory=dict,
        description="KV groups by the decoder layer, for attentions that lost some; 'none of N' if"
        " the attention was removed; null if the harness did not make it narrower itself, so that"
        " nobody knows",
    )
    mlp: dict[int, str | None] = Field(
        default_factory=dict, description="MLP channels, as in `attention`"
    )
    hidden: str | None = Field(description="channels of the residual stream; null if nobody knows")
    experts: dict[int, str | None] = Field(
        default_factory=dict,
        description="routed experts by the decoder layer, for layers that lost some, as in"
        " `attention`",
    )
    attention_reads: dict[int, str] = Field(
        default_factory=dict,
        description="channels of the residual stream that the attention reads, by the decoder"
        " layer, if each sub-block has channels of its own",
    )
    attention_writes: dict[int, str] = Field(
        default_factory=dict, description="channels that the attention adds to, likewise"
    )
    mlp_reads: dict[int, str] = Field(
        default_factory=dict, description="channels that the MLP reads, likewise"
    )
    mlp_writes: dict[int, str] = Field(
        default_factory=dict, description="channels that the MLP adds to, likewise"
    )


def index_text(indices: Sequence[int], total: int | None = None) -> str:
    """These ascending indices, of ``total`` in the dense model, as text."""
    ranges = "none"
    if indices:
        ranges = ",".join(
            str(first) if first == last else f"{first}-{last}" for first, last in _runs(indices)
        )
    if total is None:
        return ranges
    bits = bytearray((total + 7) // 8)
    for index in indices:
        bits[index // 8] |= 1 << index % 8
    packed = f"bits of {total}: {base64.b64encode(bits).decode()}"
    # The first of equal length: an empty set stays readable.
    return min(f"{ranges} of {total}", packed, key=len)


def indices_of(text: str) -> tuple[list[int], int | None]:
    """The ascending indices in ``text``, and how many the dense model has; None if it says not.

    Raises ValueError if it is not such a text.
    """
    total: int | None = None
    if found := _BITS.fullmatch(text):
        total = int(found["total"])
        indices = _unpacked(found["bits"], total)
    elif found := _RANGES.fullmatch(text):
        total = None if found["total"] is None else int(found["total"])
        indices = _listed(found["set"])
    else:
        raise ValueError(f"'{_short(text)}' is no set of indices, such as '0-3,7' or 'none of 12'")
    if total is not None and indices and indices[-1] >= total:
        raise ValueError(f"'{_short(text)}': there is no index {indices[-1]} of {total}")
    return indices, total


def _runs(indices: Iterable[int]) -> list[tuple[int, int]]:
    """(first, last) of each run of consecutive indices."""
    runs: list[tuple[int, int]] = []
    for index in indices:
        if runs and runs[-1][1] == index - 1:
            runs[-1] = (runs[-1][0], index)
        else:
            runs.append((index, index))
    return runs


def _listed(text: str) -> list[int]:
    indices: list[int] = []
    for part in [] if text == "none" else text.split(","):
        first, _, last = part.partition("-")
        start, stop = int(first), int(last or first) + 1
        if stop > _MOST:
            raise ValueError(f"'{part}': no model has so many units")
        if start >= stop or (indices and start <= indices[-1]):
            raise ValueError(f"'{part}': indices must ascend, and each may appear once")
        indices += range(start, stop)
    return indices


def _unpacked(text: str, total: int) -> list[int]:
    try:
        packed = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"'{_short(text)}' is not base64: {error}") from error
    if len(packed) != (total + 7) // 8:
        raise ValueError(f"{8 * len(packed)} bits do not fit a set of {total}")
    return [index for index in range(8 * len(packed)) if packed[index // 8] >> index % 8 & 1]


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
