"""A few kilobytes of generated sentences, the same on every machine: text without a network."""

from __future__ import annotations

import random

from prunebench import Corpus, hookimpl

_WORDS = """\
gardener|baker|pilot|clerk|miller|painter|sailor|teacher|farmer|printer
cuts|mends|counts|carries|sorts|paints|opens|weighs|repairs|names
old|narrow|second|green|heavy|borrowed|quiet|broken|small|last
hedge|loaf|map|ledger|wheel|fence|rope|page|field|lamp|kettle|ladder
slowly|twice|carefully|again|early|at noon|in the rain|before supper|every week
"""
_WHO, _DOES, _WHICH, _WHAT, _HOW = (line.split("|") for line in _WORDS.splitlines())
_PARAGRAPHS, _SENTENCES = 40, 6


class TinyText(Corpus):
    name = "tiny-text"
    summary = "generated sentences, 40 paragraphs in each split (no download)"
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
