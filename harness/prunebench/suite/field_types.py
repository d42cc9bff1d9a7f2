"""Types of suite keys: one value or a list, a section by one of its keys, a size of memory."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from prunebench.plugin.option_values import LARGEST, whole_numbers

T = TypeVar("T")


class Section(BaseModel):
    """A mapping in a suite file.

    Types are strict: a text is never read as a number, and a number is finite.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _read_whole_numbers(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Take 8.0 for 8, as JSON Schema and with it editors do."""
        try:
            return handler(data)
        except ValidationError:
            whole = whole_numbers(data)
            if repr(whole) == repr(data):
                raise
            return handler(whole)


class OneOrMany:
    """Marks a list that may also be written as its only item, or as null if ``none`` is true."""

    def __init__(self, *, none: bool = False) -> None:
        self.none = none

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._as_list, handler(source))

    # Pydantic would describe the list alone; editors should accept the short forms too.
    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        array = handler(schema)
        return {"anyOf": [array["items"], array, *([{"type": "null"}] if self.none else [])]}

    def _as_list(self, value: Any) -> Any:
        if value is None and self.none:
            return []
        return value if isinstance(value, list) else [value]


class Short:
    """Marks a section that may also be written as the text, or the number, of one of its keys."""

    def __init__(self, key: str, *, number: bool = False) -> None:
        self.key = key
        self.number = number

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        def expand(value: Any) -> Any:
            short = isinstance(value, int | float) if self.number else isinstance(value, str)
            return {self.key: value} if short and not isinstance(value, bool) else value

        return core_schema.no_info_before_validator_function(expand, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        section = handler(schema)
        text = {"type": "string"}
        # A number has the bounds that it has in the section.
        key = handler.resolve_ref_schema(section)["properties"][self.key]
        return {"anyOf": [_without_notes(key) if self.number else text, section]}


def _without_notes(schema: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in schema.items()
        if key not in {"description", "default", "title"}
    }


Many = Annotated[list[T], Field(min_length=1), OneOrMany()]
"""One or several; never none."""

ManyOrNone = Annotated[list[T], OneOrMany(none=True)]
"""One, several, or none (null)."""

Count = Annotated[int, Field(gt=0, le=10_000_000)]

TokenCount = Annotated[int, Field(gt=1, le=10_000_000)]
"""Tokens of a window: at least two, because the first one is never predicted."""

Threads = Annotated[int, Field(gt=0, le=4096)]

Seed = Annotated[int, Field(ge=0, le=LARGEST)]

Seconds = Annotated[float, Field(ge=0, le=1e9)]

Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|(cuda|xpu)(:[0-9]{1,3})?)$")]

MemoryDevice = Annotated[str, Field(pattern=r"^(cpu|0|[1-9][0-9]{0,2})$")]
"""'cpu', or the number of a GPU as text: the keys of a mapping are texts."""

_MOST_BYTES = 2**60
_SIZE = r"^\s*(?=[0-9.]*[1-9])([0-9]{1,6}(?:\.[0-9]{1,6})?)\s*([kKMGT]i?)?B\s*$"


def _bytes(value: Any) -> Any:
    """Bytes of '8 GB' (8e9) or '8 GiB' (8 * 2^30); the type's own check sees all other values."""
    match = re.fullmatch(_SIZE, value) if isinstance(value, str) else None
    if match is None:
        return value
    unit = match[2] or ""
    base = 1024 if unit.endswith("i") else 1000
    # The position of the unit's first letter is its power: k is 1, M is 2, none is 0.
    power = " kMGT".index(unit[:1].replace("K", "k") or " ")
    # Rounded up: a positive size is never zero.
    return math.ceil(float(match[1]) * base**power)


MemorySize = Annotated[
    int,
    Field(gt=0, le=_MOST_BYTES),
    BeforeValidator(_bytes),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "exclusiveMinimum": 0, "maximum": _MOST_BYTES},
                {"type": "string", "pattern": _SIZE},
            ]
        }
    ),
]
"""Bytes, or text with a unit: kB MB GB TB are powers of 1000, KiB MiB GiB TiB of 1024."""
