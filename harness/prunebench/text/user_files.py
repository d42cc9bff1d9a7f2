"""Read the files of users: lines of text, JSON lines and Parquet; errors name file and line.

Corpora and the rows of tasks are read here, so that both get the same checks: what a tokenizer
cannot take is found before it sees the text.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunebench.errors import PrunebenchError, first_line
from prunebench.model.cache import cache_dir

if TYPE_CHECKING:
    import pyarrow as pa

AGAIN = "copy or download the file again"
UTF8 = "save the file as UTF-8"
_OBJECTS = "each line must be one JSON object"
_ARRAY = "the file must be one JSON array of objects; name a file of JSON lines .jsonl"
_MARK = "\ufeff"  # byte order mark: editors on Windows begin a UTF-8 file with it
_LARGE = 1 << 20  # bytes; reading a smaller file costs less than looking up that it was checked
_CHECK = 1  # raise it when the checks find more, so that large files are checked again
_GZIP = b"\x1f\x8b"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")  # byte order marks of UTF-16, and the first one of UTF-32


def text_fault(value: Any) -> str | None:
    """Why a tokenizer cannot take ``value`` as a text, as the end of a sentence; None if it can."""
    if value is None:
        return "is null"
    if not isinstance(value, str):
        return f"is {type(value).__name__}, not text"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        return (
            f"holds half of a surrogate pair (U+{ord(value[error.start]):04X}) "
            f"at character {error.start + 1}"
        )
    return None


def check_once(path: Path, what: str, sha256: str, rows: Iterable[Any]) -> None:
    """Go through ``rows``, which are read from ``path``, for the errors that this raises.

    A large file that passed is remembered by its hash and by ``what`` it was checked for, and not
    read again.
    """
    if path.stat().st_size < _LARGE:
        _exhaust(rows)
        return
    key = hashlib.sha256(f"{_CHECK} {sha256} {what}".encode()).hexdigest()
    passed = cache_dir() / "checked-text" / key
    if not passed.exists():
        _exhaust(rows)
        # If the cache is not writable, the file is checked again next time; that is no error.
        with contextlib.suppress(OSError):
            passed.parent.mkdir(parents=True, exist_ok=True)
            passed.touch()


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines with their line ends, without a byte order mark.

    A name that ends in '.gz' is decompressed. Raises PrunebenchError if the file cannot be read or
    is not UTF-8.
    """
    number = 0
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
            # Split as bytes, which is safe: in UTF-8 no other character contains a line feed.
            for number, line in enumerate(file, start=1):
                if number == 1:
                    _check_start(path, line)
                text = line.decode("utf-8")
                yield number, text.removeprefix(_MARK) if number == 1 else text
    except UnicodeDecodeError as error:
        raise PrunebenchError(
            f"{path}:{number}: not UTF-8 (byte {error.start + 1} of the line)", hint=UTF8
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise PrunebenchError(
            f"{path}: damaged gzip data after line {number}: {error}", hint=AGAIN
        ) from error
    except OSError as error:
        raise PrunebenchError(f"cannot read {path}: {error.strerror or error}") from error


def json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines, with their line numbers; blank lines are left out.

    Raises PrunebenchError as `lines` does, and for a line that is not one JSON object whose strings
    are text.
    """
    for number, line in lines(path):
        # Files that were joined may have a mark in front of any line.
        text = line.strip().removeprefix(_MARK)
        if text:
            yield number, _json_row(f"{path}:{number}", text)


def json_items(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file that is one JSON array, numbered from 1.

    Raises PrunebenchError as `lines` does, and if the file is anything else.
    """
    text = "".join(line for _, line in lines(path))
    try:
        items: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise PrunebenchError(f"{path}{line}: not JSON: {error}", hint=_ARRAY) from error
    if not isinstance(items, list):
        raise PrunebenchError(f"{path}: {type(items).__name__}, not an array", hint=_ARRAY)
    for number, item in enumerate(items, start=1):
        if not isinstance(item, dict):
            raise PrunebenchError(
                f"{path}: item {number}: {type(item).__name__}, not an object", hint=_ARRAY
            )
        yield number, item


def parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a Parquet file, numbered from 1.

    Raises PrunebenchError if the file is damaged or a string in it is not UTF-8.
    """
    for before, batch in _batches(path):
        names = batch.schema.names
        columns = [
            _values(path, name, column, before)
            for name, column in zip(names, batch.columns, strict=True)
        ]
        for number, row in enumerate(zip(*columns, strict=True), start=before + 1):
            yield number, dict(zip(names, row, strict=True))


def parquet_texts(path: Path, name: str) -> Iterator[tuple[int, str | None]]:
    """The values of a column of text, with their row numbers from 1.

    Text may be stored as strings of any kind, as bytes, or by a dictionary (pandas' categories).
    Raises PrunebenchError if the file is damaged, or has no such column, or if that is not text.
    """
    for before, batch in _batches(path, name):
        values = _values(path, name, batch.column(0), before)
        for number, value in enumerate(values, start=before + 1):
            yield number, _decoded(path, name, number, value)


def _exhaust(rows: Iterable[Any]) -> None:
    for _ in rows:
        pass


def _check_start(path: Path, start: bytes) -> None:
    """Name a file that is no UTF-8 by what it is; ``start`` is its first line."""
    if start.startswith(_GZIP):
        raise PrunebenchError(
            f"{path} is compressed with gzip", hint="give it a name that ends in .gz"
        )
    # Without a mark, UTF-16 has a zero byte beside every letter, which is valid UTF-8.
    if start.startswith(_UTF16) or (len(start) > 1 and (start[0] == 0) != (start[1] == 0)):
        raise PrunebenchError(f"{path} is UTF-16 or UTF-32, not UTF-8", hint=UTF8)


def _json_row(where: str, text: str) -> dict[str, Any]:
    try:
        row: Any = json.loads(text)
    except (ValueError, RecursionError) as error:  # deeply nested lists exceed the recursion limit
        raise PrunebenchError(f"{where}: not JSON: {error}", hint=_OBJECTS) from error
    if not isinstance(row, dict):
        raise PrunebenchError(f"{where}: {type(row).__name__}, not an object", hint=_OBJECTS)
    return row


def _batches(path: Path, name: str | None = None) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Batches of rows, or of the column ``name``, each with the number of rows before it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    before = 0
    try:
        # Opened here, because Arrow takes no path that is not UTF-8.
        with path.open("rb") as opened, pq.ParquetFile(opened) as file:
            if name is not None:
                _check_column(path, file.schema_arrow, name)
            for batch in file.iter_batches(columns=None if name is None else [name]):
                yield before, batch
                before += batch.num_rows
    except FileNotFoundError as error:
        raise PrunebenchError(f"cannot read {path}: {error.strerror}") from error
    except (pa.ArrowException, OSError) as error:
        raise PrunebenchError(
            f"{path}: not a valid Parquet file: {first_line(error)}", hint=AGAIN
        ) from error


def _check_column(path: Path, schema: pa.Schema, name: str) -> None:
    import pyarrow.types as kinds

    if name not in schema.names:
        columns = ", ".join(f"'{column}'" for column in schema.names)
        raise PrunebenchError(
            f"{path}: no column '{name}'; columns: {columns}",
            hint="name the column that holds the text with `field`",
        )
    kind = schema.field(name).type
    while kinds.is_dictionary(kind):
        kind = kind.value_type
    texts = (
        kinds.is_string,
        kinds.is_large_string,
        kinds.is_string_view,
        kinds.is_binary,
        kinds.is_large_binary,
        kinds.is_binary_view,
        kinds.is_null,  # a column without a single value
    )
    if not any(is_text(kind) for is_text in texts):
        raise PrunebenchError(
            f"{path}: column '{name}' is {kind}, not text",
            hint="name another column with `field`",
        )


def _values(path: Path, name: str, column: pa.Array, before: int) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        # Arrow does not check strings when it reads a file, and does not say which one is wrong.
        for number, value in enumerate(column, start=before + 1):
            try:
                value.as_py()
            except UnicodeDecodeError as error:
                raise _not_utf8(path, name, number, error) from error
        raise
    return values


def _decoded(path: Path, name: str, number: int, value: str | bytes | None) -> str | None:
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, name, number, error) from error


def _not_utf8(path: Path, name: str, number: int, error: UnicodeDecodeError) -> PrunebenchError:
    return PrunebenchError(
        f"{path}: row {number}: '{name}' is not UTF-8 (byte {error.start + 1} of the value)",
        hint="write the column as UTF-8 strings",
    )
