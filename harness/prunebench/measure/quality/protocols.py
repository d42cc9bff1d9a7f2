"""Perplexity protocols by name: window, split, joiner and tail as in the code of pruning papers.

Perplexities of different protocols cannot be compared: dense LLaMA-7B has 5.68 on WikiText-2 in
windows of 2048 tokens and 12.62 in windows of 128. A protocol fills in what a suite leaves out; a
suite's own settings take precedence. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

ProtocolName = Literal["sparsegpt", "wanda", "llm-pruner", "disp-llm"]


@dataclass(frozen=True)
class Protocol:
    """How a paper measures perplexity."""

    summary: str
    length: int | None
    """Tokens per window; None for the model's `max_position_embeddings`."""
    tail: bool = False
    """Whether the short window at the end of the text counts."""
    tokens: int | None = None
    """Use only this many tokens, rounded down to whole windows; None for the corpus's default."""
    splits: Mapping[str, str] = field(default_factory=dict)
    """By corpus, if not the corpus's own."""
    joiners: Mapping[str, str] = field(default_factory=dict)
    """The text between two documents, by corpus, if not the corpus's own."""

    def windows(self, length: int | None) -> int | None:
        """The most windows of ``length`` tokens that the protocol takes; None if unlimited."""
        return None if self.tokens is None or length is None else max(1, self.tokens // length)


PROTOCOLS: Mapping[ProtocolName, Protocol] = {
    "sparsegpt": Protocol(
        "windows of 2048 tokens, tail dropped (Frantar and Alistarh 2023, arXiv:2301.00774)", 2048
    ),
    "wanda": Protocol(
        "windows as long as the model's max_position_embeddings, without a cap, tail dropped "
        "(Sun et al. 2024, arXiv:2306.11695)",
        None,
    ),
    "llm-pruner": Protocol(
        "windows of 128 tokens, mean over tokens; Penn Treebank: validation split, joined by blank "
        "lines (Ma et al. 2023, arXiv:2305.11627)",
        128,
        splits={"ptb": "validation"},
        joiners={"ptb": "\n\n"},
    ),
    "disp-llm": Protocol(
        "the first 256 x 2048 tokens in windows of 4096, the short last one counts, mean over "
        "tokens (Gao et al. 2024, arXiv:2410.11988)",
        4096,
        tail=True,
        tokens=256 * 2048,
    ),
}

DEFAULT: ProtocolName = "sparsegpt"
