"""How sparsity is written: a share of the weights, or an N:M pattern."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field, WithJsonSchema

LARGEST_GROUP = 99_999
_N_OF_M = r"^\s*([0-9]{1,5}):([0-9]{1,5})\s*$"


class Pattern(NamedTuple):
    """N:M sparsity as NVIDIA counts it: at most ``keep`` non-zeros in each aligned group of ``of``.

    The code of SparseGPT and Wanda counts zeros instead: both agree on 2:4 and 4:8, not on 1:4.
    """

    keep: int
    of: int

    @property
    def sparsity(self) -> float:
        return 1 - self.keep / self.of

    def __str__(self) -> str:
        return f"{self.keep}:{self.of}"


def parse_sparsity(value: Any) -> float | str:
    """A share in [0, 1), 'N:M' with 0 < N < M, or N:M by name as a mapping.

    {keep: 1, of: 4} and {zeros: 3, of: 4} are both '1:4'. Raises ValueError with the fix.
    """
    if isinstance(value, Mapping):
        return _named_pattern(value)
    if isinstance(value, str) and (match := re.fullmatch(_N_OF_M, value)):
        keep, of = int(match[1]), int(match[2])
        if not 0 < keep < of:
            raise ValueError(f"{value}: N:M keeps N of every M weights, so 0 < N < M")
        return f"{keep}:{of}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is neither a share such as 0.5 nor a pattern such as 2:4")
    if not 0 <= value < 1:
        raise ValueError(
            f"{value} is out of range: a share of weights to remove is at least 0 and below 1"
        )
    return float(value)


def _named_pattern(value: Mapping[str, Any]) -> str:
    counts = set(value) - {"of"}
    if counts not in ({"keep"}, {"zeros"}) or "of" not in value:
        raise ValueError(
            f"{dict(value)}: name `of` and either `keep` or `zeros`, for example {{keep: 2, of: 4}}"
        )
    wrong = [
        name
        for name, count in value.items()
        if isinstance(count, bool) or not isinstance(count, int)
    ]
    if wrong:
        raise ValueError(f"{dict(value)}: {' and '.join(wrong)} must be whole numbers")
    of = value["of"]
    keep = value["keep"] if "keep" in value else of - value["zeros"]
    if of > LARGEST_GROUP:
        raise ValueError(f"{dict(value)}: a group has at most {LARGEST_GROUP} weights")
    if not 0 < keep < of:
        raise ValueError(
            f"{dict(value)}: of every {of} weights at least one must be kept and one removed"
        )
    return f"{keep}:{of}"


def _named_schema(count: str) -> dict[str, Any]:
    """JSON Schema of {keep: N, of: M} or {zeros: N, of: M}; that N is below M it cannot say."""
    number = {"type": "integer", "minimum": 1, "maximum": LARGEST_GROUP}
    return {
        "type": "object",
        "properties": {count: number, "of": number},
        "required": [count, "of"],
        "additionalProperties": False,
    }


Sparsity = Annotated[
    float | str,
    BeforeValidator(parse_sparsity),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
                {"type": "string", "pattern": _N_OF_M},
                _named_schema("keep"),
                _named_schema("zeros"),
            ]
        }
    ),
    Field(
        description="share of weights set to zero, or N:M (keeps N of every M inputs; also"
        " {keep: N, of: M}, {zeros: N, of: M})"
    ),
]


def is_share(sparsity: float | str) -> bool:
    """Whether a parsed sparsity is a share of the weights, not an N:M pattern."""
    return not isinstance(sparsity, str)


def share_of(sparsity: float | str) -> float:
    """The share of the weights that a parsed sparsity removes."""
    pattern = pattern_of(sparsity)
    return float(sparsity) if pattern is None else pattern.sparsity


def pattern_of(sparsity: float | str) -> Pattern | None:
    """The N:M pattern that a parsed sparsity names; None if it is a share."""
    if not isinstance(sparsity, str):
        return None
    keep, of = sparsity.split(":")
    return Pattern(int(keep), int(of))
