"""Read documents from local files: text, JSON and Parquet; errors name file and line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prunebench.errors import PrunebenchError
from prunebench.text.user_files import (
    check_once,
    json_items,
    json_rows,
    lines,
    parquet_texts,
    text_fault,
)


def read_documents(path: Path, field: str = "text") -> list[str]:
    """The documents of a file.

    A text file is one document; each JSON line, each object of a JSON array and each Parquet row is
    one, with its text under ``field``. Raises PrunebenchError that names the file and the line or
    column at fault.
    """
    return list(_documents(path, field))


def check_documents(path: Path, field: str, sha256: str) -> None:
    """Raise what `read_documents` would raise; ``sha256`` is the file's hash."""
    check_once(path, f"documents {path.suffix.lower()} {field}", sha256, _documents(path, field))


def _documents(path: Path, field: str) -> Iterator[str]:
    name = path.name.lower()
    if name.endswith(".parquet"):
        found: Iterator[str] = _parquet(path, field)
    elif name.endswith(".json"):
        found = _json(json_items(path), field, f"{path}: item ")
    elif name.removesuffix(".gz").endswith(".jsonl"):
        found = _json(json_rows(path), field, f"{path}:")
    else:
        found = iter(["".join(line for _, line in lines(path))])
    holds_text = False
    for text in found:
        holds_text = holds_text or bool(text.strip())
        yield text
    if not holds_text:
        raise PrunebenchError(f"{path} holds no text", hint="name a file that does")


def _json(rows: Iterator[tuple[int, dict[str, Any]]], field: str, where: str) -> Iterator[str]:
    """The texts of numbered JSON objects; ``where`` is put in front of a number in messages."""
    for number, row in rows:
        if field not in row:
            keys = ", ".join(f"'{key}'" for key in row) or "none"
            raise PrunebenchError(
                f"{where}{number}: no key '{field}'; keys: {keys}",
                hint="name the key that holds the text with `field`",
            )
        yield _checked(row[field], f"{where}{number}: '{field}'")


def _parquet(path: Path, field: str) -> Iterator[str]:
    for number, value in parquet_texts(path, field):
        yield _checked(value, f"{path}: row {number}: '{field}'")


def _checked(value: Any, what: str) -> str:
    """``value``, which must be a text that a tokenizer can take; ``what`` names it."""
    if fault := text_fault(value):
        # A row without text is refused and not left out: documents would no longer be the rows.
        hint = "leave rows without text out" if value is None else "name another key with `field`"
        if isinstance(value, str):
            hint = "repair the text: it was cut or escaped in the middle of a character"
        raise PrunebenchError(f"{what} {fault}", hint=hint)
    text: str = value
    return text
