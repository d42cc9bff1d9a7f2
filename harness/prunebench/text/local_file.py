"""A corpus that is a file on this machine: text, rows or tokens, by its suffix."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from prunebench.experiment.text import CorpusRef
from prunebench.text.corpus import Corpus, check_split

FILE_SPLIT = "all"
"""The only split of a local file."""

TEXT_SUFFIXES = (".txt", ".raw", ".txt.gz", ".raw.gz")
ROW_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")
NUMPY_SUFFIX = ".npy"
SUFFIXES = (*TEXT_SUFFIXES, *ROW_SUFFIXES, NUMPY_SUFFIX)


@dataclass(frozen=True)
class LocalFile(Corpus):
    """The text or the tokens of a file that a suite names by its path."""

    ref: CorpusRef
    path: Path
    summary: str = "local file"
    licence: str = "not stated"
    splits: tuple[str, ...] = (FILE_SPLIT,)
    calibration_split: str = FILE_SPLIT
    evaluation_split: str = FILE_SPLIT

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.ref.name

    @property
    def revision(self) -> str | None:  # type: ignore[override]
        return self.ref.sha256

    @property
    def holds_tokens(self) -> bool:
        return suffix_of(self.path) == NUMPY_SUFFIX

    @property
    def sampler(self) -> str:  # type: ignore[override]
        if self.holds_tokens:
            return "as-is"
        return "joined-rows" if suffix_of(self.path) in ROW_SUFFIXES else "joined-random"

    def documents(self, split: str) -> Iterable[str]:
        from prunebench.text.document_files import read_documents

        check_split(self, split)
        return read_documents(self.path, self.ref.field)


def suffix_of(path: Path) -> str | None:
    """The known suffix of a file name, or None; the longest one, so '.txt.gz' and not '.gz'."""
    name = path.name.lower()
    return max((suffix for suffix in SUFFIXES if name.endswith(suffix)), key=len, default=None)
