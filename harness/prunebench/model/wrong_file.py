"""Say what a file is if it is not what its name says: a pointer, a web page, an archive."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from prunebench.errors import PrunebenchError

AGAIN = "copy or download the file again"
_START = 64  # bytes at the start of a file that show its kind
_DOWNLOAD = "download the file itself: on the Hub its address has /resolve/ and not /blob/"
# First bytes -> what the file is, and what to do about it.
_KINDS: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer",
        "run `git lfs pull` in that folder, or download the file",
    ),
    (b"<!doctype", "a web page", _DOWNLOAD),
    (b"<html", "a web page", _DOWNLOAD),
    (b"<?xml", "an XML document", _DOWNLOAD),
    (b"entry not found", "an error message of the Hub", _DOWNLOAD),
    (b"invalid username or password", "an error message of the Hub", _DOWNLOAD),
    (b"gguf", "a GGUF file", "give it a name that ends in .gguf, and name the file itself"),
    (
        b"pk\x03\x04",
        "a zip archive, as torch.save writes it",
        "convert it to safetensors; pickled weights are never loaded",
    ),
    (b"\x80\x02", "a pickle", "convert it to safetensors; pickled weights are never loaded"),
    (b"\x1f\x8b", "compressed with gzip", "decompress it"),
    (b"\xff\xfe", "UTF-16", "save it as UTF-8"),
    (b"\xfe\xff", "UTF-16", "save it as UTF-8"),
)


def wrong_file(path: Path, start: bytes, expected: str) -> PrunebenchError:
    """The error for a file that is not ``expected``; ``start`` is how it begins."""
    if not start:
        return PrunebenchError(f"{path} is empty, not {expected}", hint=AGAIN)
    for signature, kind, hint in _KINDS:
        if start.lower().startswith(signature):
            return PrunebenchError(f"{path} is {kind}, not {expected}", hint=hint)
    if not start.strip(b"\0"):
        return PrunebenchError(f"{path} begins with zeros, so it is not {expected}", hint=AGAIN)
    return PrunebenchError(f"{path} is not {expected}", hint=AGAIN)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; a byte order mark in front of it does no harm.

    Raises FileNotFoundError if there is no file, PrunebenchError if it is not a JSON object.
    """
    try:
        check_regular(path)
        content = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise PrunebenchError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        found = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # deeply nested lists exceed the recursion limit
        # What begins like an object was meant as JSON, so the place of the fault says more.
        if content.lstrip()[:1] in {b"{", b"["}:
            raise PrunebenchError(f"{path} is not JSON: {error}", hint=AGAIN) from error
        raise wrong_file(path, content[:_START], "JSON") from error
    if not isinstance(found, dict):
        raise PrunebenchError(f"{path} holds a JSON {_kind(found)}, not an object", hint=AGAIN)
    return found


def check_regular(path: Path) -> None:
    """Raise PrunebenchError if ``path`` is no file, because reading a pipe might never end.

    Raises FileNotFoundError if there is nothing.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise PrunebenchError(f"{path} is {kind}, not a file", hint=AGAIN)


def _kind(value: Any) -> str:
    return {list: "list", str: "string", type(None): "null"}.get(type(value), "value")
