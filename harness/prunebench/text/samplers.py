"""Samplers: from documents to token windows, as the pruning papers' code draws them. No torch.

Each sampler takes `Texts`, the number of windows, their length and a seed, and gives `SampledWindows`. The random samplers use
`random.Random(seed)` in the order of the original code, so that the same documents and tokenizer give the same windows.
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

_MISSES = (
    50_000  # draws in a row that hit no document that is long enough, before a sampler gives up
)
_CHARACTERS_PER_TOKEN = (
    5  # a first guess of how much text is needed; it decides the time, not the result
)
_BLANK_LINE = "\n\n"
_LESS = "ask for fewer or shorter windows, or name a larger corpus"
_JOIN = "ask for shorter windows, or choose a sampler that joins documents, such as joined-rows"


@dataclass(frozen=True)
class Texts:
    """What is drawn from.

    ``encode`` gives the ids of a text; ``settled``, where there is one, the leading ids that more text cannot change.
    ``label`` names the corpus in messages.
    """

    documents: Iterable[str]
    encode: Encode
    joiner: str = _BLANK_LINE
    settled: Encode | None = None
    label: str = "the corpus"

    def rows(self) -> Sequence[str]:
        return self.documents if isinstance(self.documents, Sequence) else list(self.documents)


@dataclass(frozen=True)
class SampledWindows:
    """tokens: int64 [windows, length]; documents: how many were used; tail: what is left at the end, int64 [tokens]."""

    tokens: NDArray[np.int64]
    documents: int
    tail: NDArray[np.int64] | None = None


def c4_gptq(texts: Texts, windows: int, length: int, seed: int) -> SampledWindows:
    """SparseGPT and Wanda on C4: draw a document, keep it if strictly longer than ``length``, slice it at random.

    A document may be drawn more than once. Raises PrunebenchError where no document is long enough.
    """
    lottery = _Lottery(texts, length + 1, seed)
    rows: list[NDArray[np.int64]] = []
    for _ in range(windows):
        if (drawn := lottery.draw()) is None:
            raise _too_little(texts, windows, length, len(rows), lottery.found, hint=_JOIN)
        _, ids = drawn
        start = lottery.rng.randint(0, len(ids) - length - 1)
        rows.append(ids[start : start + length])
    return SampledWindows(np.stack(rows), len(lottery.long_enough))


def distinct(texts: Texts, windows: int, length: int, seed: int) -> SampledWindows:
    """LLM-Pruner and Shortened LLaMA on BookCorpus: distinct documents with at least ``length`` tokens, a slice of each.

    Raises PrunebenchError where fewer documents are long enough.
    """
    lottery = _Lottery(texts, length, seed)
    rows: list[NDArray[np.int64]] = []
    for _ in range(windows):
        if (drawn := lottery.draw()) is None:
            raise _too_little(texts, windows, length, len(rows), lottery.found, hint=_JOIN)
        index, ids = drawn
        lottery.exclude(index)
        start = lottery.rng.randint(0, len(ids) - length)
        rows.append(ids[start : start + length])
    return SampledWindows(np.stack(rows), windows)


def joined_random(texts: Texts, windows: int, length: int, seed: int) -> SampledWindows:
    """GPTQ on WikiText-2 and PTB: all documents joined and tokenised as one text, windows at random starts.

    Windows may overlap. Raises PrunebenchError where the text is not longer than ``length``.
    """
    rows = texts.rows()
    ids = np.asarray(texts.encode(texts.joiner.join(rows)), dtype=np.int64)
    if len(ids) <= length:
        raise _too_little(texts, windows, length, 0, f"the text has {len(ids)} tokens")
    rng = random.Random(seed)
    starts = [rng.randint(0, len(ids) - length - 1) for _ in range(windows)]
    return SampledWindows(np.stack([ids[start : start + length] for start in starts]), len(rows))


def joined_rows(texts: Texts, windows: int, length: int, seed: int) -> SampledWindows:
    """BlockPruner on Alpaca: rows in random order, joined by a blank line, cut into windows that do not overlap.

    BlockPruner's `nsamples` counts rows, so that 256 of them give a few tens of windows; here rows are drawn until
    ``windows`` windows are full. Raises PrunebenchError where all rows together do not fill them.
    """
    rows = texts.rows()
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    return _fill(texts, (rows[index] for index in order), _BLANK_LINE, windows, length)


def consecutive(texts: Texts, windows: int | None, length: int, seed: int = 0) -> SampledWindows:
    """Perplexity evaluation, ShortGPT on PG19: documents joined in order, tokenised as one text, cut from the start.

    Windows do not overlap and the incomplete last one is dropped; None takes all. The seed plays no part. Gives
    the same tokens as tokenising the whole text, also where less of it was enough. Raises PrunebenchError where
    the text is too short.
    """
    del seed
    return _fill(texts, texts.documents, texts.joiner, windows, length)


def stretch(
    texts: Texts, windows: int | None, length: int, *, fewer: bool = False, tail: bool = False
) -> SampledWindows:
    """`consecutive` for evaluation: ``fewer`` windows where the text is short, and its ``tail`` as a shorter window.

    The tail is there only where the text ends before all windows are full, and has at least two tokens, since the
    first one is not predicted. Raises PrunebenchError where the text is too short.
    """
    return _fill(texts, texts.documents, texts.joiner, windows, length, fewer=fewer, tail=tail)


SAMPLERS: dict[str, Callable[[Texts, int, int, int], SampledWindows]] = {
    "c4-gptq": c4_gptq,
    "distinct": distinct,
    "joined-random": joined_random,
    "joined-rows": joined_rows,
    "consecutive": consecutive,
}


def sample(name: str, texts: Texts, windows: int, length: int, seed: int) -> SampledWindows:
    """Run the sampler of that name. Raises PrunebenchError where there is none or the corpus has too little text."""
    if name == "as-is":
        raise PrunebenchError(
            "the sampler 'as-is' is for token files",
            hint=f"for text choose one of {', '.join(SAMPLERS)}",
        )
    if name not in SAMPLERS:
        raise PrunebenchError(f"unknown sampler '{name}'", hint=did_you_mean(name, SAMPLERS))
    return SAMPLERS[name](texts, windows, length, seed)


class _Lottery:
    """Draws documents that have at least ``least`` tokens; each is tokenised once."""

    def __init__(self, texts: Texts, least: int, seed: int) -> None:
        self.rng = random.Random(seed)
        self.long_enough: dict[int, NDArray[np.int64]] = {}
        self._rows = texts.rows()
        self._encode = texts.encode
        self._least = least
        self._out: set[int] = set()  # too short, or excluded

    @property
    def found(self) -> str:
        return f"{len(self.long_enough)} of {len(self._out | self.long_enough.keys())} documents drawn are long enough"

    def exclude(self, index: int) -> None:
        self._out.add(index)

    def draw(self) -> tuple[int, NDArray[np.int64]] | None:
        """Index and ids of a document, or None after too many misses."""
        for _ in range(_MISSES):
            if len(self._out) == len(self._rows):
                return None
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
    texts: Texts,
    documents: Iterable[str],
    joiner: str,
    windows: int | None,
    length: int,
    *,
    fewer: bool = False,
    tail: bool = False,
) -> SampledWindows:
    """Join documents until the windows are full, and cut."""
    remaining, parts = iter(documents), []
    ids: Sequence[int] = ()
    need = (windows or 0) * length
    if windows is not None and texts.settled is not None:
        goal, size = need * _CHARACTERS_PER_TOKEN, 0
        for part in remaining:
            parts.append(part)
            size += len(part) + len(joiner)
            while size >= goal and len(ids) < need:
                ids = texts.settled(joiner.join(parts)[:goal])
                goal = int(1.1 * goal * max(1, need / len(ids))) if ids else sys.maxsize
            if len(ids) >= need:
                break
    if windows is None or len(ids) < need:
        parts.extend(remaining)
        ids = texts.encode(joiner.join(parts))
    have = len(ids) // length
    short = tail and len(ids) - have * length > 1 and (windows is None or have < windows)
    wanted = 1 if fewer else windows or 1
    if have + short < wanted:
        raise _too_little(texts, wanted, length, have, f"the text has {len(ids)} tokens")
    count = min(have, windows or have)
    return SampledWindows(
        np.asarray(ids[: count * length], dtype=np.int64).reshape(count, length),
        len(parts),
        np.asarray(ids[count * length :], dtype=np.int64) if short else None,
    )


def _too_little(
    texts: Texts, windows: int, length: int, had: int, why: str, *, hint: str = _LESS
) -> PrunebenchError:
    asked = f"{windows} windows of {length} tokens asked, only {had} can be had"
    return PrunebenchError(f"{texts.label} has too little text: {asked}; {why}", hint=hint)
