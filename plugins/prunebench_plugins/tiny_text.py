"""A few kilobytes of made-up sentences, the same everywhere: text for trials and tests without a network."""

from __future__ import annotations

import random

from prunebench import Corpus, hookimpl

_WHO = [
    "gardener",
    "baker",
    "pilot",
    "clerk",
    "miller",
    "painter",
    "sailor",
    "teacher",
    "farmer",
    "printer",
]
_DOES = [
    "cuts",
    "mends",
    "counts",
    "carries",
    "sorts",
    "paints",
    "opens",
    "weighs",
    "repairs",
    "names",
]
_HOW = (
    "slowly",
    "twice",
    "carefully",
    "again",
    "early",
    "at noon",
    "in the rain",
    "before supper",
    "every week",
)
_WHAT = [
    "hedge",
    "loaf",
    "map",
    "ledger",
    "wheel",
    "fence",
    "rope",
    "page",
    "field",
    "lamp",
    "kettle",
    "ladder",
]
_WHICH = [
    "old",
    "narrow",
    "second",
    "green",
    "heavy",
    "borrowed",
    "quiet",
    "broken",
    "small",
    "last",
]
_PARAGRAPHS, _SENTENCES = 40, 6


class TinyText(Corpus):
    name = "tiny-text"
    summary = "made-up sentences of our own, 40 paragraphs a side (no download)"
    licence = "Apache-2.0"
    splits = ("calibration", "evaluation")
    calibration_split = "calibration"
    evaluation_split = "evaluation"
    sampler = "joined-random"
    joiner = "\n\n"
    revision = "1"

    def documents(self, split: str) -> list[str]:
        noise = random.Random(self.splits.index(split))
        return [" ".join(_sentence(noise) for _ in range(_SENTENCES)) for _ in range(_PARAGRAPHS)]


def _sentence(noise: random.Random) -> str:
    who, does, which, what, how = (
        words[noise.randbytes(1)[0] % len(words)] for words in (_WHO, _DOES, _WHICH, _WHAT, _HOW)
    )
    return f"The {who} {does} the {which} {what} {how}."


@hookimpl
def prunebench_register_corpus() -> Corpus:
    return TinyText()
