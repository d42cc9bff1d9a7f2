"""The error that users see: a message that says what is wrong, and a hint with the fix."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from typing import Any


class PrunebenchError(Exception):
    """A problem that the user can fix: the command line prints it, no traceback, and exits with 2.

    ``message`` names the file, line or key at fault; ``hint`` is one sentence with the fix.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        # A name of a file may hold what neither a terminal nor a record can take.
        self.message = printable(message)
        self.hint = None if hint is None else printable(hint)
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class PluginError(PrunebenchError):
    """A mistake in a plugin's code, which its author has to fix: users cannot.

    ``what`` is wrong; ``where`` is the layer and the linear at fault; ``place`` is file and line.
    """

    def __init__(
        self,
        what: str,
        *,
        hint: str | None = None,
        where: str | None = None,
        place: str | None = None,
    ) -> None:
        super().__init__(_located(what, where, place), hint=hint)
        self.what, self.where, self.place = what, where, place

    def at(self, *, where: str | None = None, place: str | None = None) -> PluginError:
        """The same error with ``where`` and ``place``, unless it knows better already."""
        return PluginError(
            self.what, hint=self.hint, where=self.where or where, place=self.place or place
        )


def described(error: BaseException) -> str:
    """What an error says, with the layer and the line of a plugin's code if notes name them."""
    if isinstance(error, PrunebenchError):
        return error.message
    return printable(_located(str(error) or type(error).__name__, *_notes(error)))


def _notes(error: BaseException) -> Iterable[str]:
    return dict.fromkeys(note for note in getattr(error, "__notes__", ()) if "\n" not in note)


def _located(what: str, *places: str | None) -> str:
    """'what: layer 0, mlp.up_proj; mine.py:17'."""
    known = "; ".join(place for place in places if place)
    return f"{what}: {known}" if known else what


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """The hint for a misspelt ``word``: the most similar valid word, else all valid words."""
    import difflib  # slow to import, and needed after a mistake only

    known = sorted(set(choices))
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"known: {', '.join(known)}" if known else "none is known here"


def is_full(error: OSError) -> bool:
    """Whether writing failed because the disk, or the user's share of it, is full."""
    return error.errno in {errno.ENOSPC, errno.EDQUOT}


def printable(text: str) -> str:
    """``text`` in UTF-8: a byte of a file's name that is no character is shown as an escape."""
    try:
        text.encode()
    except UnicodeEncodeError:
        # Python holds such a byte as the code point 0xDC00 + byte.
        return "".join(
            f"\\x{ord(sign) - 0xDC00:02x}"
            if "\udc80" <= sign <= "\udcff"
            else sign.encode(errors="backslashreplace").decode()
            for sign in text
        )
    return text


def printable_values(value: Any) -> Any:
    """``value``, which JSON can hold, with every text in it as `printable` gives it."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {printable_values(key): printable_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [printable_values(item) for item in value]
    return value


def one_line(text: str) -> str:
    """``text`` with line breaks and control characters as escapes, because names may hold them."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in printable(text))


def first_line(error: BaseException) -> str:
    """The first line of the error's message that is not blank, cut to 200 characters.

    If that line ends with a colon, the next line has the reason, so it follows. If the message has
    no line, the name of the error's class. Notes, which name the line of a plugin, come after it.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = " ".join(lines[:2] if lines and lines[0].endswith(":") else lines[:1])
    line = line if len(line) <= 200 else f"{line[:197]}..."
    return _located(line or type(error).__name__, *_notes(error))
