"""Paths are bytes: names that are not UTF-8, in values, in commands, and for other libraries.

Python reads a byte of a name that is not UTF-8 as a lone surrogate (byte E9 as U+DCE9) and writes
it back unchanged. Neither JSON nor UTF-8 can hold such a character, so a value has the path as a
`file:` URI instead. All other paths are themselves.
"""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote_to_bytes

SCHEME = "file:///"


def is_utf8(text: str) -> bool:
    """Whether ``text`` can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def path_text(path: Path | str) -> str:
    """A path as text that is UTF-8: the path itself, or if that is not UTF-8, its `file:` URI."""
    text = str(path)
    return text if is_utf8(text) else Path(path).absolute().as_uri()


def text_path(text: str | Path) -> Path:
    """The path that `path_text` made ``text`` of; any other text is a path as it is."""
    if isinstance(text, str) and text.startswith(SCHEME):
        return Path(os.fsdecode(unquote_to_bytes(text.removeprefix("file://"))))
    return Path(text)


def shell_command(words: Sequence[str]) -> str:
    """``words`` as a command that a shell reads back; in UTF-8, so that a record can hold it."""
    return " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    if is_utf8(word):
        return shlex.quote(word)
    # The form of bash, ksh and zsh for any byte: $'caf\351'.
    signs = (
        chr(byte) if 32 <= byte < 127 and chr(byte) not in "'\\" else f"\\{byte:03o}"
        for byte in os.fsencode(word)
    )
    return f"$'{''.join(signs)}'"


def temporary_parent() -> str:
    """The folder for temporary files; another than usual if that is not UTF-8."""
    usual = tempfile.gettempdir()
    others = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - only a parent of folders of our own
    found = (one for one in others if os.access(one, os.W_OK | os.X_OK))
    return usual if is_utf8(usual) else next(found, usual)


@contextmanager
def utf8_path(path: Path) -> Iterator[Path]:
    """A path to the same folder that is UTF-8, for libraries that take no other."""
    if is_utf8(str(path)):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="prunebench-link-", dir=temporary_parent()) as folder:
        link = Path(folder) / "link"
        link.symlink_to(path.absolute())
        yield link
