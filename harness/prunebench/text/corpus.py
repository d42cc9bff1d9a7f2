"""Where text comes from: registered corpora and local files. No torch, no numpy: suites are planned with this."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunebench.errors import PrunebenchError, did_you_mean
from prunebench.experiment.text import CorpusRef
from prunebench.model.cache import file_sha256

SAMPLER_NAMES: tuple[str, ...] = (
    "c4-gptq",
    "distinct",
    "joined-random",
    "joined-rows",
    "consecutive",
    "as-is",
)
"""How windows are cut; `as-is` is for token files, the others are functions in `samplers`."""

FILE_SPLIT = "all"
"""The one split of a local file."""

TEXT_SUFFIXES = (".txt", ".raw", ".txt.gz", ".raw.gz")
ROW_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
NUMPY_SUFFIX = ".npy"
SUFFIXES = (*TEXT_SUFFIXES, *ROW_SUFFIXES, NUMPY_SUFFIX)


class Corpus(ABC):
    """A named text corpus. Subclass it, set the attributes, and return an instance from the registering hook."""

    name: str
    summary: str
    """One line."""
    licence: str
    splits: tuple[str, ...]
    calibration_split: str
    evaluation_split: str
    sampler: str
    """Cuts calibration windows where a suite names no sampler; one of SAMPLER_NAMES."""
    joiner: str = "\n\n"
    """Stands between documents where they are joined into one text."""
    revision: str | None = None
    """Pins the text: a data set revision or a file hash. Cells with different revisions are different experiments."""
    evaluation_windows: int | None = None
    """How many windows perplexity takes where a suite does not say; all where None."""

    @abstractmethod
    def documents(self, split: str) -> Iterable[str]:
        """The documents of one of ``splits``, always in the same order.

        A Sequence (`__len__`, `__getitem__`) spares samplers that draw at random from reading everything.
        """


@dataclass(frozen=True)
class LocalFile(Corpus):
    """The text of a file that a suite names by its path."""

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
        from prunebench.text.files import read_documents

        check_split(self, split)
        return read_documents(self.path, self.ref.field)


def suffix_of(path: Path) -> str | None:
    """The longest known suffix of a file name, or None."""
    return next(
        (
            suffix
            for suffix in sorted(SUFFIXES, key=len, reverse=True)
            if path.name.lower().endswith(suffix)
        ),
        None,
    )


def resolve_corpus(
    value: str | Mapping[str, Any], *, base: Path, corpora: Mapping[str, Corpus]
) -> CorpusRef:
    """Look up what a suite names: a registered corpus, or a local file (relative to ``base``).

    ``value`` is the name or path, or a mapping {corpus: NAME}, {file: PATH} with an optional `field`, the key or
    column that holds the text. Raises PrunebenchError where there is no such corpus or no such file, where the
    suffix is not known, and where the file is empty.
    """
    name, field, must_be_file = _parse(value)
    if name in corpora and not must_be_file:
        if field is not None:
            raise PrunebenchError(
                f"corpus '{name}': `field` is for local files",
                hint="leave `field` out; the corpus knows its own",
            )
        return CorpusRef(name=name, revision=corpora[name].revision)
    path = base / Path(name).expanduser()
    if not must_be_file and not _looks_like_a_path(name) and not path.is_file():
        raise PrunebenchError(f"unknown corpus '{name}'", hint=did_you_mean(name, corpora))
    _check_file(path)
    extra = {} if field is None else {"field": field}
    return CorpusRef(name=path.name, path=str(path.resolve()), sha256=file_sha256(path), **extra)


def corpus_of(ref: CorpusRef, corpora: Mapping[str, Corpus]) -> Corpus:
    """The corpus that ``ref`` stands for. Raises PrunebenchError where no plugin registers it any more."""
    if ref.path is not None:
        return LocalFile(ref, Path(ref.path))
    if ref.name not in corpora:
        raise PrunebenchError(f"unknown corpus '{ref.name}'", hint=did_you_mean(ref.name, corpora))
    return corpora[ref.name]


def check_split(corpus: Corpus, split: str) -> None:
    """Raise PrunebenchError where the corpus has no such split."""
    if split not in corpus.splits:
        raise PrunebenchError(
            f"corpus '{corpus.name}' has no split '{split}'",
            hint=did_you_mean(split, corpus.splits),
        )


def _parse(value: str | Mapping[str, Any]) -> tuple[str, str | None, bool]:
    """Name or path, the field if one is given, and whether it must be a file."""
    if isinstance(value, str):
        return value, None, False
    if not isinstance(value, Mapping):
        raise PrunebenchError(
            f"{value!r} is no corpus", hint="give a name, a file, or {file: PATH, field: KEY}"
        )
    for key in value:
        if key not in {"corpus", "file", "field"}:
            raise PrunebenchError(
                f"corpus: unknown key '{key}'",
                hint=did_you_mean(str(key), ["corpus", "file", "field"]),
            )
    named = [key for key in ("corpus", "file") if key in value]
    if len(named) != 1:
        raise PrunebenchError(
            "a corpus needs exactly one of `corpus` and `file`",
            hint="e.g. {file: text.jsonl, field: text}",
        )
    name, field = value[named[0]], value.get("field")
    if not isinstance(name, str) or not (field is None or isinstance(field, str)):
        raise PrunebenchError(
            f"corpus: `{named[0]}` and `field` are strings, not {dict(value)!r}",
            hint="put them in quotes",
        )
    return name, field, named[0] == "file"


def _looks_like_a_path(name: str) -> bool:
    return "/" in name or "\\" in name or suffix_of(Path(name)) is not None


def _check_file(path: Path) -> None:
    if not path.exists():
        raise PrunebenchError(
            f"no file {path}", hint="a path in a suite is relative to the suite's folder"
        )
    if not path.is_file():
        raise PrunebenchError(
            f"{path} is not a file", hint="name one file of text, or a token file"
        )
    if suffix_of(path) is None:
        raise PrunebenchError(
            f"{path}: not a known kind of corpus file", hint=f"known: {' '.join(SUFFIXES)}"
        )
    if path.stat().st_size == 0:
        raise PrunebenchError(f"{path} is empty", hint="name a file that holds text or tokens")
