"""Token windows of a cell: those that a method may look at, and those that are measured."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prunebench.byte_path import text_path
from prunebench.errors import PrunebenchError
from prunebench.experiment.measures import PerplexitySpec
from prunebench.experiment.text import CalibrationSpec, CorpusRef
from prunebench.model.cache import file_sha256
from prunebench.model.positions import max_positions
from prunebench.text.checked_documents import checked_documents
from prunebench.text.corpus import Corpus, check_split
from prunebench.text.encoder import Encoder
from prunebench.text.example_windows import example_windows
from prunebench.text.examples import checked_examples, read_examples
from prunebench.text.local_file import LocalFile
from prunebench.text.resolve import corpus_of
from prunebench.text.samplers import (
    TextSource,
    consecutive_for_evaluation,
    sample,
    whole_rows,
)
from prunebench.text.token_file import read_tokens

# Samplers that cut one text from its start, so that only the first window begins with its first
# token.
_FROM_THE_START = ("consecutive", "joined-rows")


@dataclass(frozen=True)
class Windows:
    """Token ids, and what identifies them on the record."""

    tokens: torch.Tensor  # int64 [windows, length]
    sha256: str
    """Of the shape and the ids (see `tokens_sha256`), with those of ``tail`` if there is one."""
    bos: str
    """Which windows begin with a begin-of-sequence token.

    'none', 'first window', 'where a text starts' or 'as in the file'.
    """
    documents: int | None
    """How many documents were used; None for a token file."""
    tail: torch.Tensor | None = None  # int64 [1, tokens]: a shorter window at the end
    counted: torch.Tensor | None = None  # bool [windows, length]: what a loss counts; None: all


def calibration_windows(
    spec: CalibrationSpec, tokenizer: Any, vocab_size: int, seed: int, corpora: Mapping[str, Corpus]
) -> Windows:
    """The windows of ``spec``; ``seed`` decides which ones are drawn.

    Raises PrunebenchError if the corpus, its split or the sampler is unknown, if the text is
    damaged or too short, or if an id is outside the model's vocabulary of ``vocab_size``.
    """
    corpus = _unchanged_corpus(spec.corpus, spec.split, corpora)
    if spec.prompt is not None:
        return _windows_of_examples(spec, corpus, Encoder(tokenizer), vocab_size, seed)
    if isinstance(corpus, LocalFile) and corpus.holds_tokens:
        if spec.sampler != "as-is":
            raise PrunebenchError(
                f"{corpus.path} is a token file: it is used as it is, "
                f"not by the sampler '{spec.sampler}'",
                hint="leave `sampler` out",
            )
        tokens = read_tokens(corpus.path, windows=spec.windows, length=spec.length)
        return _windows(tokens, vocab_size, corpus.name)
    encoder = Encoder(tokenizer)
    source = _text_source(corpus, spec.split, encoder)
    if spec.windows is None:
        drawn = whole_rows(source, spec.rows or 0, spec.length, seed)
    else:
        drawn = sample(spec.sampler, source, spec.windows, spec.length, seed)
    bos = "first window" if spec.sampler in _FROM_THE_START else "where a text starts"
    if encoder.bos is None:
        bos = "none"
    return _windows(drawn.tokens, vocab_size, corpus.name, bos, drawn.documents)


def _windows_of_examples(
    spec: CalibrationSpec, corpus: Corpus, encoder: Encoder, vocab_size: int, seed: int
) -> Windows:
    if isinstance(corpus, LocalFile):
        examples = read_examples(corpus.path)
    else:
        label = f"corpus '{corpus.name}' ({spec.split})"
        examples = checked_examples(corpus.examples(spec.split), label)
    tokens, counted = example_windows(spec, examples, encoder, seed)
    bos = "none" if encoder.bos is None else "where a text starts"
    found = _windows(tokens, vocab_size, corpus.name, bos, len(tokens))
    mask = hashlib.sha256(np.packbits(counted).tobytes()).hexdigest()
    both = hashlib.sha256(f"{found.sha256} {mask}".encode()).hexdigest()
    return replace(found, sha256=both, counted=torch.from_numpy(counted))


def with_length(spec: PerplexitySpec, model: Any) -> PerplexitySpec:
    """``spec`` with a window length: the model's `max_position_embeddings` if the suite names none.

    Raises PrunebenchError if neither names a length.
    """
    return spec.model_copy(update={"length": spec.length or max_positions(model)})


def evaluation_windows(
    spec: PerplexitySpec, tokenizer: Any, vocab_size: int, corpora: Mapping[str, Corpus]
) -> Windows:
    """Consecutive windows of a split: its documents are joined, tokenised once and cut from the
    start.

    ``spec`` has a length (see `with_length`). No seed plays a part. Raises PrunebenchError as
    `calibration_windows` does, ValueError if the length is missing.
    """
    if spec.length is None:
        raise ValueError("evaluation windows need a length")
    corpus = _unchanged_corpus(spec.corpus, spec.split, corpora)
    if isinstance(corpus, LocalFile) and corpus.holds_tokens:
        tokens = read_tokens(corpus.path, windows=spec.windows, length=spec.length)
        return _windows(tokens, vocab_size, corpus.name)
    encoder = Encoder(tokenizer)
    source = _text_source(corpus, spec.split, encoder)
    if spec.joiner is not None:
        source = replace(source, joiner=spec.joiner)
    drawn = consecutive_for_evaluation(
        source, spec.windows, spec.length, fewer=spec.fewer, tail=spec.tail
    )
    bos = "none" if encoder.bos is None else "first window"
    found = _windows(drawn.tokens, vocab_size, corpus.name, bos, drawn.documents)
    if drawn.tail is None:
        return found
    tail = _windows(drawn.tail[None], vocab_size, corpus.name)
    both = hashlib.sha256(f"{found.sha256} {tail.sha256}".encode()).hexdigest()
    return replace(found, sha256=both, tail=tail.tokens)


def tokens_sha256(tokens: NDArray[np.int64]) -> str:
    """SHA-256 of the shape and the little-endian bytes of ``tokens``, int64 [windows, length]."""
    windows, length = tokens.shape
    # The shape is hashed too, because the same ids cut otherwise give another perplexity.
    return hashlib.sha256(
        f"{windows}x{length}\n".encode() + tokens.astype("<i8").tobytes()
    ).hexdigest()


def check_ids(tokens: NDArray[np.int64], vocab_size: int, what: str) -> None:
    """Raise PrunebenchError if one of ``tokens`` is no id of the model.

    An embedding on a GPU would crash on it, without saying which.
    """
    low, high = (int(tokens.min()), int(tokens.max())) if tokens.size else (0, 0)
    if low < 0 or high >= vocab_size:
        raise PrunebenchError(
            f"{what} gives token id {low if low < 0 else high}, "
            f"but the model has ids 0 to {vocab_size - 1}",
            hint="use the tokenizer, or a token file, that belongs to this model",
        )


def _unchanged_corpus(ref: CorpusRef, split: str, corpora: Mapping[str, Corpus]) -> Corpus:
    corpus = corpus_of(ref, corpora)
    check_split(corpus, split)
    if ref.path is not None and file_sha256(text_path(ref.path)) != ref.sha256:
        raise PrunebenchError(
            f"{ref.path} has changed since the suite was planned",
            hint="run the suite again: its cells get new ids",
        )
    if ref.path is None and corpus.revision != ref.revision:
        raise PrunebenchError(
            f"corpus '{ref.name}' is at revision {corpus.revision}, "
            f"but the cell was planned with {ref.revision}",
            hint="run the suite again: its cells get new ids",
        )
    return corpus


def _text_source(corpus: Corpus, split: str, encoder: Encoder) -> TextSource:
    label = f"corpus '{corpus.name}' ({split})"
    documents = corpus.documents(split)
    # The documents of a file were checked when it was read, where its lines are known.
    if not isinstance(corpus, LocalFile):
        documents = checked_documents(documents, label)
    return TextSource(
        documents=documents,
        encode=encoder,
        joiner=corpus.joiner,
        stable_prefix=encoder.stable_prefix,
        label=label,
    )


def _windows(
    tokens: NDArray[np.int64],  # [windows, length]
    vocab_size: int,
    name: str,
    bos: str = "as in the file",
    documents: int | None = None,
) -> Windows:
    check_ids(tokens, vocab_size, f"corpus '{name}'")
    return Windows(torch.from_numpy(tokens), tokens_sha256(tokens), bos, documents)
