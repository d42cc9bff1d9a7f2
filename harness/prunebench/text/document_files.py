"""Read documents from local files: text, JSON lines and Parquet; errors name file and line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prunebench.errors import PrunebenchError, first_line

_AGAIN = "copy or download the file again"


def read_documents(path: Path, field: str = "text") -> list[str]:
    """The documents of a file.

    A text file is one document; each JSON line and each Parquet row is one, with its text under
    ``field``. Raises PrunebenchError that names the file and the line or column at fault.
    """
    name = path.name.lower()
    if name.endswith(".parquet"):
        documents = _parquet(path, field)
    elif name.removesuffix(".gz").endswith(".jsonl"):
        documents = [
            _row(path, number, line, field) for number, line in _lines(path) if line.strip()
        ]
    else:
        documents = ["".join(line for _, line in _lines(path))]
    if not any(documents):
        raise PrunebenchError(f"{path} holds no text", hint="name a file that does")
    return documents


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines with their line ends.

    The file is split as bytes, which is safe: in UTF-8 no other character contains a line feed.
    """
    number = 0
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield number, line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PrunebenchError(
            f"{path}:{number}: not UTF-8 (byte {error.start + 1} of the line)",
            hint="save the file as UTF-8",
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise PrunebenchError(
            f"{path}: damaged gzip data after line {number}: {error}", hint=_AGAIN
        ) from error
    except OSError as error:
        raise PrunebenchError(f"cannot read {path}: {error.strerror or error}") from error


def _row(path: Path, number: int, line: str, field: str) -> str:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:  # deeply nested lists exceed the recursion limit
        raise PrunebenchError(
            f"{path}:{number}: not JSON: {error}", hint="each line must be one JSON object"
        ) from error
    if not isinstance(row, dict):
        raise PrunebenchError(
            f"{path}:{number}: {type(row).__name__}, not an object",
            hint="each line must be one JSON object",
        )
    if field not in row:
        keys = ", ".join(f"'{key}'" for key in row) or "none"
        raise PrunebenchError(
            f"{path}:{number}: no key '{field}'; keys: {keys}",
            hint="name the key that holds the text with `field`",
        )
    text = row[field]
    if not isinstance(text, str):
        raise PrunebenchError(
            f"{path}:{number}: '{field}' is {type(text).__name__}, not text",
            hint="name another key with `field`",
        )
    return text


def _parquet(path: Path, field: str) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            if field not in schema.names:
                columns = ", ".join(f"'{name}'" for name in schema.names)
                raise PrunebenchError(
                    f"{path}: no column '{field}'; columns: {columns}",
                    hint="name the column that holds the text with `field`",
                )
            kind = schema.field(field).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise PrunebenchError(
                    f"{path}: column '{field}' is {kind}, not text",
                    hint="name another column with `field`",
                )
            texts: list[str | None] = file.read(columns=[field]).column(field).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise PrunebenchError(
            f"{path}: not a valid Parquet file: {first_line(error)}", hint=_AGAIN
        ) from error
    # Refuse a missing text instead of skipping it: documents would no longer be the file's rows.
    empty = next((row for row, text in enumerate(texts, start=1) if text is None), None)
    if empty is not None:
        raise PrunebenchError(
            f"{path}: column '{field}' has no value in row {empty}",
            hint="leave rows without text out",
        )
    return [text for text in texts if text is not None]
