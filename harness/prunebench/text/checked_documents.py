"""Check the documents that a plugin or a data set gives, before a tokenizer sees them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

from prunebench.errors import PrunebenchError
from prunebench.text.user_files import text_fault


def checked_documents(documents: Any, label: str) -> Iterable[str]:
    """The same documents, each checked when it is accessed; ``label`` names the corpus.

    Accessing one that a tokenizer cannot take raises PrunebenchError with its number. A Sequence
    stays one, so that samplers need not read all of it.
    """
    # A text is a sequence of texts of one letter, so the mistake would go unnoticed.
    if isinstance(documents, str | bytes) or not isinstance(documents, Iterable):
        raise PrunebenchError(
            f"{label} gives {type(documents).__name__} instead of a list of texts",
            hint="the plugin's `documents` must return several texts, for example a list",
        )
    if isinstance(documents, Sequence):
        return _CheckedSequence(documents, label)
    return (_checked(text, number, label) for number, text in enumerate(documents, start=1))


class _CheckedSequence(Sequence[str]):
    def __init__(self, documents: Sequence[Any], label: str) -> None:
        self._documents = documents
        self._label = label

    def __len__(self) -> int:
        return len(self._documents)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        return _checked(self._documents[index], index % len(self) + 1, self._label)

    def __iter__(self) -> Iterator[str]:
        # Not by index: a data set reads its rows faster in batches.
        for number, text in enumerate(self._documents, start=1):
            yield _checked(text, number, self._label)


def _checked(text: Any, number: int, label: str) -> str:
    if fault := text_fault(text):
        raise PrunebenchError(
            f"{label}: document {number} {fault}",
            hint="correct the corpus: each document must be a text in Unicode",
        )
    checked: str = text
    return checked
