"""Token windows of a cell: what a method may look at, and what perplexity is measured on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prunebench.errors import PrunebenchError
from prunebench.experiment.measures import PerplexitySpec
from prunebench.experiment.text import CalibrationSpec, CorpusRef
from prunebench.model.cache import file_sha256
from prunebench.model.positions import max_positions
from prunebench.text.corpus import Corpus, LocalFile, check_split, corpus_of
from prunebench.text.encoder import Encoder
from prunebench.text.samplers import Texts, sample, stretch
from prunebench.text.token_file import read_tokens

_FROM_THE_START = ("consecutive", "joined-rows")


@dataclass(frozen=True)
class Windows:
    """Token ids and what names them.

    tokens: int64 [windows, length]; sha256: of `windows x length` and the little-endian bytes; bos: where the
    beginning-of-sequence token stands ('none', 'first window', 'where a text starts', 'as in the file');
    documents: how many were used, None for a token file; tail: a shorter window at the end, int64 [1, tokens], which
    `sha256` covers too.
    """

    tokens: torch.Tensor
    sha256: str
    bos: str
    documents: int | None
    tail: torch.Tensor | None = None


def calibration_windows(
    spec: CalibrationSpec, tokenizer: Any, vocab_size: int, seed: int, corpora: Mapping[str, Corpus]
) -> Windows:
    """The windows that ``spec`` asks for; ``seed`` decides the draw.

    Raises PrunebenchError where the corpus, its split or the sampler is unknown, where the text is too little or
    damaged, and where an id is outside the model's vocabulary of ``vocab_size``.
    """
    corpus = _corpus(spec.corpus, spec.split, corpora)
    if isinstance(corpus, LocalFile) and corpus.holds_tokens:
        if spec.sampler != "as-is":
            raise PrunebenchError(
                f"{corpus.path} is a token file and is used as it is, not by the sampler '{spec.sampler}'",
                hint="leave `sampler` out",
            )
        return _windows(
            read_tokens(corpus.path, windows=spec.windows, length=spec.length),
            vocab_size,
            corpus.name,
        )
    encoder = Encoder(tokenizer)
    drawn = sample(
        spec.sampler, _texts(corpus, spec.split, encoder), spec.windows, spec.length, seed
    )
    bos = "first window" if spec.sampler in _FROM_THE_START else "where a text starts"
    return _windows(
        drawn.tokens,
        vocab_size,
        corpus.name,
        bos if encoder.bos is not None else "none",
        drawn.documents,
    )


def with_length(spec: PerplexitySpec, model: Any) -> PerplexitySpec:
    """``spec`` with a window length: the model's `max_position_embeddings` if the suite names none.

    Raises PrunebenchError if neither names a length.
    """
    return spec.model_copy(update={"length": spec.length or max_positions(model)})


def evaluation_windows(
    spec: PerplexitySpec, tokenizer: Any, vocab_size: int, corpora: Mapping[str, Corpus]
) -> Windows:
    """Consecutive windows of a split: its documents are joined, tokenised once and cut from the start.

    ``spec`` has a length (see `with_length`). No seed plays a part. Raises PrunebenchError as
    `calibration_windows` does, ValueError if the length is missing.
    """
    if spec.length is None:
        raise ValueError("evaluation windows need a length")
    corpus = _corpus(spec.corpus, spec.split, corpora)
    if isinstance(corpus, LocalFile) and corpus.holds_tokens:
        tokens = read_tokens(corpus.path, windows=spec.windows, length=spec.length)
        return _windows(tokens, vocab_size, corpus.name)
    encoder = Encoder(tokenizer)
    texts = _texts(corpus, spec.split, encoder)
    if spec.joiner is not None:
        texts = replace(texts, joiner=spec.joiner)
    drawn = stretch(texts, spec.windows, spec.length, fewer=spec.fewer, tail=spec.tail)
    bos = "none" if encoder.bos is None else "first window"
    found = _windows(drawn.tokens, vocab_size, corpus.name, bos, drawn.documents)
    if drawn.tail is None:
        return found
    short = _windows(drawn.tail[None], vocab_size, corpus.name)
    both = hashlib.sha256(f"{found.sha256} {short.sha256}".encode()).hexdigest()
    return replace(found, sha256=both, tail=short.tokens)


def tokens_sha256(tokens: NDArray[np.int64]) -> str:
    """SHA-256 of the shape and the little-endian bytes. tokens: int64 [windows, length]."""
    windows, length = tokens.shape
    return hashlib.sha256(
        f"{windows}x{length}\n".encode() + tokens.astype("<i8").tobytes()
    ).hexdigest()


def _corpus(ref: CorpusRef, split: str, corpora: Mapping[str, Corpus]) -> Corpus:
    corpus = corpus_of(ref, corpora)
    check_split(corpus, split)
    if ref.path is not None and file_sha256(Path(ref.path)) != ref.sha256:
        raise PrunebenchError(
            f"{ref.path} has changed since the suite was planned",
            hint="run the suite again: its cells are new ones",
        )
    if ref.path is None and corpus.revision != ref.revision:
        raise PrunebenchError(
            f"corpus '{ref.name}' is at revision {corpus.revision}, the cell was planned with {ref.revision}",
            hint="run the suite again: its cells are new ones",
        )
    return corpus


def _texts(corpus: Corpus, split: str, encoder: Encoder) -> Texts:
    return Texts(
        documents=corpus.documents(split),
        encode=encoder,
        joiner=corpus.joiner,
        settled=encoder.settled,
        label=f"corpus '{corpus.name}' ({split})",
    )


def _windows(
    tokens: NDArray[np.int64],
    vocab_size: int,
    name: str,
    bos: str = "as in the file",
    documents: int | None = None,
) -> Windows:
    low, high = (int(tokens.min()), int(tokens.max())) if tokens.size else (0, 0)
    if low < 0 or high >= vocab_size:
        raise PrunebenchError(
            f"corpus '{name}' gives token id {low if low < 0 else high}, the model knows 0 to {vocab_size - 1}",
            hint="use the tokenizer, or a token file, that belongs to this model",
        )
    return Windows(torch.from_numpy(tokens), tokens_sha256(tokens), bos, documents)
