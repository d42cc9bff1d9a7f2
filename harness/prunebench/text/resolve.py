"""From a corpus's name in a suite to a corpus reference, and from the reference to the corpus."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunebench.byte_path import path_text, text_path
from prunebench.errors import PrunebenchError, did_you_mean, printable
from prunebench.experiment.text import CorpusRef
from prunebench.model.cache import file_sha256
from prunebench.text.corpus import Corpus
from prunebench.text.document_files import check_documents
from prunebench.text.examples import check_examples
from prunebench.text.local_file import NUMPY_SUFFIX, ROW_SUFFIXES, SUFFIXES, LocalFile, suffix_of
from prunebench.user_path import user_path


def resolve_corpus(
    value: str | Mapping[str, Any],
    *,
    base: Path,
    corpora: Mapping[str, Corpus],
    examples: bool = False,
) -> CorpusRef:
    """Resolve what a suite names: a registered corpus, or a local file (relative to ``base``).

    ``value`` is a name, a path, or a mapping {corpus: NAME} or {file: PATH}, the latter with an
    optional `field`: the key or column that holds the text. ``examples``: the suite wants examples
    of instruction data and not text. Raises PrunebenchError if there is no such corpus or file, if
    the file's suffix is unknown, or if it holds nothing of what is wanted or something damaged.
    """
    name, field, must_be_file = _parse(value)
    # A registered name wins over a file of the same name; {file: ...} asks for the file.
    if name in corpora and not must_be_file:
        if field is not None:
            raise PrunebenchError(
                f"corpus '{name}': `field` is for local files",
                hint="leave `field` out; the corpus knows its own",
            )
        if examples and not corpora[name].holds_examples:
            raise PrunebenchError(
                f"corpus '{name}' holds no examples of instruction, input and output",
                hint="leave `prompt` out, or name a corpus of instruction data",
            )
        return CorpusRef(name=name, revision=corpora[name].revision)
    hint = f"name a file, or a registered corpus: {', '.join(sorted(corpora))}"
    path = user_path(name, what="corpus", hint=hint, base=base)
    if not must_be_file and not _looks_like_a_path(name) and not path.is_file():
        raise PrunebenchError(f"unknown corpus '{name}'", hint=did_you_mean(name, corpora))
    _check_file(path)
    if field is not None and suffix_of(path) not in ROW_SUFFIXES:
        raise PrunebenchError(
            f"{path} has no fields: `field` is for {', '.join(ROW_SUFFIXES)}",
            hint="leave `field` out",
        )
    extra = {} if field is None else {"field": field}
    ref = CorpusRef(
        name=printable(path.name),
        path=path_text(path.resolve()),
        sha256=file_sha256(path),
        **extra,
    )
    if examples:
        check_examples(path, ref.sha256 or "")
    elif suffix_of(path) != NUMPY_SUFFIX:
        check_documents(path, ref.field, ref.sha256 or "")
    return ref


def corpus_of(ref: CorpusRef, corpora: Mapping[str, Corpus]) -> Corpus:
    """The corpus of a reference. Raises PrunebenchError if no plugin registers it any more."""
    if ref.path is not None:
        return LocalFile(ref, text_path(ref.path))
    if ref.name not in corpora:
        raise PrunebenchError(f"unknown corpus '{ref.name}'", hint=did_you_mean(ref.name, corpora))
    return corpora[ref.name]


def _parse(value: str | Mapping[str, Any]) -> tuple[str, str | None, bool]:
    """Name or path, the field if one is given, and whether it must be a file."""
    if isinstance(value, str):
        return value, None, False
    if not isinstance(value, Mapping):
        raise PrunebenchError(
            f"{value!r} is not a corpus", hint="give a name, a file, or {file: PATH, field: KEY}"
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
