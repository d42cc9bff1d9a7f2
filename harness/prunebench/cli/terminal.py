"""Standard output and error, which may fail: a closed pipe, a full disk, an encoding without signs.

What is printed may get lost; a command goes on and ends as it would have done.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from prunebench.errors import printable

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("stdout", "stderr")
DEFAULT_WIDTH = 80
"""Of a terminal that does not say how wide it is."""


def say(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Print to the standard output, or to the standard error.

    `click.echo` would write UTF-8 if the terminal has another encoding.
    """
    stream = sys.stderr if err else sys.stdout
    stream.write(f"{text}\n" if nl else text)
    stream.flush()


def tell(text: str, *, err: bool = False, indent: int = 2) -> None:
    """Print a sentence; in a terminal its lines break between words, never inside a word.

    Lines after the first begin with ``indent`` blanks. What a user may copy is printed by `say`.
    """
    room = width(err=err)
    lines = text.split("\n")
    if room is not None:
        lines = [part for line in lines for part in _broken(line, room, indent)]
    say("\n".join(lines), err=err)


def _broken(line: str, room: int, indent: int) -> list[str]:
    if len(line) <= room:
        return [line]
    import textwrap

    return textwrap.wrap(
        line,
        max(room, indent + 1),
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def width(*, err: bool = False) -> int | None:
    """How many columns of text the output has; None for a file or a pipe, which has no width.

    The variable COLUMNS says it for any output.
    """
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given):
        return int(given)
    stream = sys.stderr if err else sys.stdout
    if not stream.isatty():
        return None
    try:
        return os.get_terminal_size(stream.fileno()).columns or DEFAULT_WIDTH
    except (OSError, ValueError):
        return DEFAULT_WIDTH


def say_path(path: Path, *, err: bool = False) -> None:
    """Print a path as the bytes that it is, so that another program can open it."""
    stream = sys.stderr if err else sys.stdout
    buffer = getattr(stream, "buffer", None)
    if buffer is None:  # in memory
        say(printable(str(path)), err=err)
        return
    stream.flush()
    buffer.write(os.fsencode(path) + b"\n")
    buffer.flush()


class Streams:
    """The standard streams of one command, and the first error of each."""

    def __init__(self) -> None:
        self.failed: dict[str, OSError] = {}
        self.result_is_a_file = False

    def lost(self) -> OSError | None:
        """Why the result got lost, if it was printed and anybody wanted it.

        Nobody does behind `| head -1`.
        """
        error = self.failed.get("stdout")
        wanted = error is not None and error.errno != errno.EPIPE and not self.result_is_a_file
        return error if wanted else None


_current: list[Streams] = []


def result_is_a_file() -> None:
    """Say that the command's result is not what it prints, so that its output may get lost."""
    for streams in _current:
        streams.result_is_a_file = True


@contextmanager
def careful_streams() -> Iterator[Streams]:
    """Inside the block nothing fails because it prints: what cannot be printed is dropped.

    Characters that the encoding lacks are replaced. Streams that are no files stay as they are.
    """
    streams = Streams()
    before = {name: getattr(sys, name) for name in NAMES}
    made: list[Any] = []
    try:
        for name, stream in before.items():
            new = _careful(name, stream, streams)
            if new is not None:
                made.append(new)
                setattr(sys, name, new)
        _current.append(streams)
        yield streams
    finally:
        _current.clear()
        for stream in made:
            stream.flush()
        for name, stream in before.items():
            setattr(sys, name, stream)


def _careful(name: str, stream: Any, streams: Streams) -> Any:
    """What replaces ``stream``; None if it can stay."""
    if stream is None:  # the descriptor was closed before we started
        return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123
    buffer = getattr(stream, "buffer", None)
    # With PYTHONUNBUFFERED the buffer is the file itself.
    unbuffered = isinstance(buffer, io.RawIOBase)
    raw = buffer if unbuffered else getattr(buffer, "raw", None)
    if raw is None:
        return None
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_CarefulRaw(raw, name, streams)),
        encoding=stream.encoding,
        errors="replace" if name == "stdout" else "backslashreplace",
        line_buffering=stream.line_buffering or unbuffered,
    )


class _CarefulRaw(io.RawIOBase):
    """Writes to ``raw`` until that fails, and then nowhere.

    It is below all buffers, so that no flush fails either, not even that of the interpreter's end.
    """

    def __init__(self, raw: Any, name: str, streams: Streams) -> None:
        super().__init__()
        self._raw = raw
        self._stream = name
        self._failed = streams.failed

    def write(self, data: Any) -> int:
        while self._stream not in self._failed:
            try:
                written: int | None = self._raw.write(data)
            except OSError as error:
                self._failed[self._stream] = error
                break
            if written is not None:
                return written
            import select

            # A terminal that another program has set to non-blocking is full for the moment.
            select.select([], [self._raw], [])
        return len(data)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return bool(self._raw.isatty())

    def fileno(self) -> int:
        return int(self._raw.fileno())

    @property
    def name(self) -> str:
        return f"<{self._stream}>"
