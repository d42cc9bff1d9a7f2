"""Types of suite keys: one value or a list, a section by one of its keys, a size of memory."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
)
from pydantic_core import CoreSchema, core_schema

T = TypeVar("T")


class Section(BaseModel):
    """A mapping in a suite file. Types are strict: a text is never read as a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


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
        return {"anyOf": [{"type": "number" if self.number else "string"}, handler(schema)]}


Many = Annotated[list[T], Field(min_length=1), OneOrMany()]
"""One or several; never none."""

ManyOrNone = Annotated[list[T], OneOrMany(none=True)]
"""One, several, or none (null)."""

Count = Annotated[int, Field(gt=0)]

_SIZE = re.compile(r"\s*(\d{1,6}(?:\.\d{1,6})?)\s*([kKMGT]i?)?B\s*")


def _bytes(value: Any) -> Any:
    """Bytes of '8 GB' (8e9) or '8 GiB' (8 * 2^30); the type's own check sees all other values."""
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return value
    unit = match[2] or ""
    base = 1024 if unit.endswith("i") else 1000
    # The position of the unit's first letter is its power: k is 1, M is 2, none is 0.
    power = " kMGT".index(unit[:1].replace("K", "k") or " ")
    return int(float(match[1]) * base**power)


MemorySize = Annotated[int, Field(gt=0), BeforeValidator(_bytes, json_schema_input_type=int | str)]
"""Bytes, or text with a unit: kB MB GB TB are powers of 1000, KiB MiB GiB TiB of 1024."""
