"""What a text corpus is. No torch and no numpy, because suites are planned with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

from prunebench.errors import PrunebenchError, did_you_mean

# Repeated here, because `samplers` needs numpy; a test compares the two lists.
SAMPLER_NAMES: tuple[str, ...] = (
    "c4-gptq",
    "distinct",
    "joined-random",
    "space-joined-random",
    "joined-rows",
    "consecutive",
    "as-is",
)
"""How calibration windows are cut: 'as-is' is for token files, the others are in `samplers`."""


class Corpus(ABC):
    """A named text corpus. Subclass it, set the attributes and return an instance from the hook."""

    name: str
    summary: str
    """One line."""
    licence: str
    splits: tuple[str, ...]
    calibration_split: str
    evaluation_split: str
    sampler: str
    """Cuts calibration windows unless a suite names another sampler; one of SAMPLER_NAMES."""
    joiner: str = "\n\n"
    """Put between documents that are joined into one text."""
    revision: str | None = None
    """Pins the text: a data set revision or a file hash.

    Cells with different revisions are different experiments.
    """
    evaluation_windows: int | None = None
    """How many windows perplexity takes unless a suite says otherwise; None: all."""

    holds_examples: bool = False
    """Whether it is instruction data, so that `prompt:` can be asked of it."""

    def fetch(self, split: str) -> None:
        """Get the text of a split, so that `documents` needs no network.

        Raises PrunebenchError if that is not possible. By default there is nothing to do.
        """
        del split

    @abstractmethod
    def documents(self, split: str) -> Iterable[str]:
        """The documents of one of ``splits``, always in the same order.

        If you return a Sequence (`__len__`, `__getitem__`), samplers that draw documents at random
        need not read all of them.
        """

    def examples(self, split: str) -> Iterable[Mapping[str, Any]]:
        """The instruction examples of a split: mappings with `instruction`, `input` and `output`.

        Override it for instruction data, and set `holds_examples`.
        """
        raise PrunebenchError(
            f"corpus '{self.name}' ({split}) holds no examples of instruction, input and output",
            hint="leave `prompt` out, or name a corpus of instruction data",
        )


def check_split(corpus: Corpus, split: str) -> None:
    """Raise PrunebenchError if the corpus has no such split."""
    if split not in corpus.splits:
        raise PrunebenchError(
            f"corpus '{corpus.name}' has no split '{split}'",
            hint=did_you_mean(split, corpus.splits),
        )
