"""Samplers: from documents to token windows, as the code of the pruning papers draws them. No
torch.

A sampler takes a `TextSource`, the number of windows, their length and a seed, and returns
`SampledWindows`. The random samplers call `random.Random(seed)` in the order of the original code,
so that the same documents and tokenizer give the same windows.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunebench.errors import PrunebenchError, did_you_mean

Encode = Callable[[str], Sequence[int]]

_MISSES = 50_000  # draws in a row without a document that is long enough, before a sampler gives up
# A first guess of how much text fills the windows, and how much more than that is tokenised when it
# was too little. They decide how long sampling takes, not its result.
_CHARACTERS_PER_TOKEN = 5
_SPARE = 1.1
_BLANK_LINE = "\n\n"
_SAMPLED_ROWS = 256  # of BlockPruner's paper
_LESS = "ask for fewer or shorter windows, or name a larger corpus"
_JOIN = "ask for shorter windows, or choose a sampler that joins documents, such as joined-rows"


@dataclass(frozen=True)
class TextSource:
    """The documents to sample from, and the tokenizer.

    ``encode`` returns the ids of a text. ``stable_prefix``, if given, returns the leading ids that
    no following text can change. ``label`` names the corpus in messages.
    """

    documents: Iterable[str]
    encode: Encode
    joiner: str = _BLANK_LINE
    stable_prefix: Encode | None = None
    label: str = "the corpus"

    def rows(self) -> Sequence[str]:
        return self.documents if isinstance(self.documents, Sequence) else list(self.documents)


@dataclass(frozen=True)
class SampledWindows:
    """Token windows, and how many documents they came from."""

    tokens: NDArray[np.int64]  # [windows, length]
    documents: int
    tail: NDArray[np.int64] | None = None  # [tokens]: the shorter window at the end of the text


def c4_gptq(source: TextSource, windows: int, length: int, seed: int) -> SampledWindows:
    """SparseGPT and Wanda on C4: draw a document longer than ``length``, cut a window at random.

    A document may be drawn more than once. Raises PrunebenchError if no document is long enough.
    """
    draws = _DocumentDraws(source, length + 1, seed)
    rows: list[NDArray[np.int64]] = []
    for _ in range(windows):
        if (drawn := draws.next()) is None:
            raise _too_little(source, windows, length, len(rows), draws.found, hint=_JOIN)
        _, ids = drawn
        # The original code never takes the last possible start, so do not either.
        start = draws.rng.randint(0, len(ids) - length - 1)
        rows.append(ids[start : start + length])
    return SampledWindows(np.stack(rows), len(draws.long_enough))


def distinct(source: TextSource, windows: int, length: int, seed: int) -> SampledWindows:
    """LLM-Pruner and Shortened LLaMA on BookCorpus: one window from each of ``windows`` documents.

    Each document has at least ``length`` tokens. Raises PrunebenchError if too few have.
    """
    draws = _DocumentDraws(source, length, seed)
    rows: list[NDArray[np.int64]] = []
    for _ in range(windows):
        if (drawn := draws.next()) is None:
            raise _too_little(source, windows, length, len(rows), draws.found, hint=_JOIN)
        index, ids = drawn
        draws.exclude(index)
        start = draws.rng.randint(0, len(ids) - length)
        rows.append(ids[start : start + length])
    return SampledWindows(np.stack(rows), windows)


def joined_random(source: TextSource, windows: int, length: int, seed: int) -> SampledWindows:
    """GPTQ on WikiText-2 and PTB: join and tokenise all documents, cut windows at random starts.

    The corpus's own joiner is between documents. Windows may overlap. Raises PrunebenchError if
    the text is not longer than ``length``.
    """
    return _random_starts(source, source.joiner, windows, length, seed)


def space_joined_random(source: TextSource, windows: int, length: int, seed: int) -> SampledWindows:
    """SparseGPT and Wanda on WikiText-2: as `joined_random`, with a space between documents."""
    return _random_starts(source, " ", windows, length, seed)


def _random_starts(
    source: TextSource, joiner: str, windows: int, length: int, seed: int
) -> SampledWindows:
    rows = source.rows()
    ids = np.asarray(source.encode(joiner.join(rows)), dtype=np.int64)  # [tokens]
    if len(ids) <= length:
        raise _too_little(source, windows, length, 0, f"the text has {len(ids)} tokens")
    rng = random.Random(seed)
    # The original code never takes the last possible start, so do not either.
    starts = [rng.randint(0, len(ids) - length - 1) for _ in range(windows)]
    return SampledWindows(np.stack([ids[start : start + length] for start in starts]), len(rows))


def whole_rows(source: TextSource, rows: int, length: int, seed: int) -> SampledWindows:
    """BlockPruner on Alpaca, by rows: a sample of ``rows`` documents, and all windows they fill.

    The documents are joined by blank lines; the end of the text that fills no window is left out.
    Raises PrunebenchError if there are not so many documents, or if they fill no window.
    """
    documents = source.rows()
    if rows > len(documents):
        raise PrunebenchError(
            f"{source.label} has {len(documents)} documents, {rows} asked", hint="ask for fewer"
        )
    order = random.Random(seed).sample(range(len(documents)), rows)
    return _fill(source, (documents[row] for row in order), _BLANK_LINE, None, length)


def joined_rows(source: TextSource, windows: int, length: int, seed: int) -> SampledWindows:
    """BlockPruner on Alpaca: a sample of rows, joined by blank lines, cut into windows.

    Windows do not overlap. BlockPruner samples 256 rows, which give a few tens of windows. Here it
    is the same number, or more if ``windows`` windows need more; rows behind the last window are
    left out. Raises PrunebenchError if all rows together do not fill the windows.
    """
    rows, need = source.rows(), windows * length
    count = min(_SAMPLED_ROWS, len(rows))
    while True:
        # A new sample each time: `random.sample` draws few rows of many otherwise than most of
        # them, so the first 256 of a permutation are not the 256 that BlockPruner's code draws.
        order = random.Random(seed).sample(range(len(rows)), count)
        ids, used = _joined_ids(source, (rows[row] for row in order), _BLANK_LINE, need)
        if len(ids) >= need or count == len(rows):
            return _cut(source, ids, used, windows, length)
        # A tenth more than the tokens per row so far suggest, so that the next sample suffices.
        count = min(len(rows), int(1.1 * count * need / max(1, len(ids))))


def consecutive(
    source: TextSource, windows: int | None, length: int, seed: int = 0
) -> SampledWindows:
    """Perplexity evaluation, and ShortGPT on PG19: join documents in order, cut from the start.

    Windows do not overlap, and an incomplete last one is dropped. ``windows`` None takes all. The
    seed is ignored. The tokens are those of the whole text, even if only a part of it was
    tokenised. Raises PrunebenchError if the text is too short.
    """
    del seed
    return _fill(source, source.documents, source.joiner, windows, length)


def consecutive_for_evaluation(
    source: TextSource,
    windows: int | None,
    length: int,
    *,
    fewer: bool = False,
    tail: bool = False,
) -> SampledWindows:
    """As `consecutive`; ``fewer`` accepts a short text, ``tail`` keeps its shorter last window.

    There is a tail only if the text ends before all windows are full and it has at least two
    tokens, because the first token is not predicted. Raises PrunebenchError if the text is too
    short.
    """
    return _fill(source, source.documents, source.joiner, windows, length, fewer=fewer, tail=tail)


SAMPLERS: dict[str, Callable[[TextSource, int, int, int], SampledWindows]] = {
    "c4-gptq": c4_gptq,
    "distinct": distinct,
    "joined-random": joined_random,
    "space-joined-random": space_joined_random,
    "joined-rows": joined_rows,
    "consecutive": consecutive,
}


def sample(name: str, source: TextSource, windows: int, length: int, seed: int) -> SampledWindows:
    """Run the sampler ``name``.

    Raises PrunebenchError if there is no such sampler or the corpus has too little text.
    """
    if name == "as-is":
        raise PrunebenchError(
            "the sampler 'as-is' is for token files",
            hint=f"for text choose one of {', '.join(SAMPLERS)}",
        )
    if name not in SAMPLERS:
        raise PrunebenchError(f"unknown sampler '{name}'", hint=did_you_mean(name, SAMPLERS))
    return SAMPLERS[name](source, windows, length, seed)


class _DocumentDraws:
    """Draws documents with at least ``least`` tokens at random; tokenises each document once."""

    def __init__(self, source: TextSource, least: int, seed: int) -> None:
        self.rng = random.Random(seed)
        self.long_enough: dict[int, NDArray[np.int64]] = {}  # index -> ids
        self._rows = source.rows()
        self._encode = source.encode
        self._least = least
        self._out: set[int] = set()  # indices that are too short, or excluded

    @property
    def found(self) -> str:
        drawn = len(self._out | self.long_enough.keys())
        return f"{len(self.long_enough)} of {drawn} documents drawn are long enough"

    def exclude(self, index: int) -> None:
        self._out.add(index)

    def next(self) -> tuple[int, NDArray[np.int64]] | None:
        """Index and ids of a document; None after too many misses."""
        for _ in range(_MISSES):
            if len(self._out) == len(self._rows):
                return None
            # Draw from all documents, even those known to be too short: the original code does, and
            # another sequence of random numbers would give other windows.
            index = self.rng.randint(0, len(self._rows) - 1)
            if index in self._out:
                continue
            if index not in self.long_enough:
                ids = self._encode(self._rows[index])
                if len(ids) < self._least:
                    self._out.add(index)
                    continue
                self.long_enough[index] = np.asarray(ids, dtype=np.int64)
            return index, self.long_enough[index]
        return None


def _fill(
    source: TextSource,
    documents: Iterable[str],
    joiner: str,
    windows: int | None,
    length: int,
    *,
    fewer: bool = False,
    tail: bool = False,
) -> SampledWindows:
    """Join documents until the windows are full, and cut the text into windows from its start."""
    need = None if windows is None else windows * length
    ids, used = _joined_ids(source, documents, joiner, need)
    return _cut(source, ids, used, windows, length, fewer=fewer, tail=tail)


def _joined_ids(
    source: TextSource, documents: Iterable[str], joiner: str, need: int | None
) -> tuple[Sequence[int], int]:
    """Ids of the joined documents, at least the first ``need`` if there are so many.

    And the number of documents that were read. None needs all.
    """
    remaining = iter(documents)
    parts: list[str] = []
    ids: Sequence[int] = ()
    if need is not None and source.stable_prefix is not None:
        ids = _enough_ids(source.stable_prefix, remaining, parts, joiner, need)
    if need is None or len(ids) < need:
        parts.extend(remaining)
        ids = source.encode(joiner.join(parts))
    return ids, len(parts)


def _cut(
    source: TextSource,
    ids: Sequence[int],
    documents: int,
    windows: int | None,
    length: int,
    *,
    fewer: bool = False,
    tail: bool = False,
) -> SampledWindows:
    """Cut ids into windows from the start; raise PrunebenchError if they are too few."""
    have = len(ids) // length
    short = tail and len(ids) - have * length > 1 and (windows is None or have < windows)
    wanted = 1 if fewer else windows or 1
    if have + short < wanted:
        raise _too_little(source, wanted, length, have, f"the text has {len(ids)} tokens")
    count = min(have, windows or have)
    return SampledWindows(
        np.asarray(ids[: count * length], dtype=np.int64).reshape(count, length),
        documents,
        np.asarray(ids[count * length :], dtype=np.int64) if short else None,
    )


def _enough_ids(
    stable_prefix: Encode, remaining: Iterable[str], parts: list[str], joiner: str, need: int
) -> Sequence[int]:
    """At least ``need`` ids of the joined text, without tokenising all of it; fewer if it ends.

    Takes documents from ``remaining`` and appends them to ``parts``.
    """
    ids: Sequence[int] = ()
    # Tokenise the first ``goal`` characters. If their stable ids are too few, estimate a longer
    # goal from the characters per id so far, with some to spare so that the second try usually
    # suffices.
    goal, size = need * _CHARACTERS_PER_TOKEN, 0
    for part in remaining:
        parts.append(part)
        size += len(part) + len(joiner)
        while size >= goal and len(ids) < need:
            ids = stable_prefix(joiner.join(parts)[:goal])
            goal = int(_SPARE * goal * max(1, need / len(ids))) if ids else sys.maxsize
        if len(ids) >= need:
            break
    return ids


def _too_little(
    source: TextSource, windows: int, length: int, had: int, why: str, *, hint: str = _LESS
) -> PrunebenchError:
    wanted = f"{windows} windows of {length} tokens are wanted, it gives {had}"
    return PrunebenchError(f"{source.label} has too little text: {wanted}; {why}", hint=hint)
