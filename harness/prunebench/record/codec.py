"""A record as JSON text and back.

The text carries a checksum, so that damage and edits are noticed. Records of older schemas are
brought to the current one step by step.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from prunebench.errors import first_line, one_line
from prunebench.record.record import SCHEMA, Record

CHECKSUM = "sha256"

Step = Callable[[dict[str, Any]], dict[str, Any]]


def _from_1(data: dict[str, Any]) -> dict[str, Any]:
    # Schema 2 added the checksum; no key changed its meaning.
    return data


STEPS: dict[int, Step] = {1: _from_1}
"""Schema number -> the function that turns such a record into one of the next schema."""


class UnreadableRecordError(ValueError):
    """The text is no record that this version can read; the message says why."""


def to_json(record: Record) -> str:
    """``record`` as JSON text with its checksum."""
    data = json.loads(record.model_dump_json(by_alias=True))
    return json.dumps({**data, CHECKSUM: checksum(data)}, indent=1, ensure_ascii=False) + "\n"


def from_json(text: str) -> Record:
    """The record in ``text``. Raises UnreadableRecordError."""
    try:
        data = json.loads(text)
    except RecursionError:
        raise UnreadableRecordError("not JSON: nested too deeply") from None
    except ValueError as error:
        raise UnreadableRecordError(f"not JSON: {first_line(error)}") from error
    schema = _readable_schema(data)
    found = data.pop(CHECKSUM, None)
    # Schema 1 had no checksum.
    if schema >= 2 and found != checksum(data):
        raise UnreadableRecordError(
            "its checksum is missing"
            if found is None
            else "its checksum does not match: the file was edited or damaged"
        )
    try:
        while schema < SCHEMA:
            data = {**STEPS[schema](data), "schema": schema + 1}
            schema += 1
        record = Record.model_validate(data)
        record.cell = record.cell.stored_as(record.id)
        return record
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UnreadableRecordError(one_line(f"not a record: {where}: {first['msg']}")) from error
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UnreadableRecordError(f"not a record: {first_line(error)}") from error


def _readable_schema(data: Any) -> int:
    """The schema number of ``data``. Raises UnreadableRecordError if no step leads from it here."""
    schema = data.get("schema") if isinstance(data, dict) else type(data).__name__
    # bool is a subclass of int: `true` would count as schema 1
    number = isinstance(schema, int) and not isinstance(schema, bool)
    if number and (schema == SCHEMA or schema in STEPS):
        return int(schema)
    newer = "; a newer prunebench wrote it" if isinstance(schema, int) and schema > SCHEMA else ""
    raise UnreadableRecordError(f"schema {schema!r}, this version reads {SCHEMA}{newer}")


def checksum(data: dict[str, Any]) -> str:
    """SHA-256 of the values, independent of key order and spacing."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
