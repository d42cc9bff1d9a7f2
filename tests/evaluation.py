"""For tests of perplexity: windows of given tokens, and a spec."""

from __future__ import annotations

import torch

from prunebench.experiment.measures import PerplexitySpec
from prunebench.experiment.text import CorpusRef
from prunebench.text.windows import Windows

SPEC = PerplexitySpec(corpus=CorpusRef(name="text"), split="test", length=None)


def windows_of(tokens: torch.Tensor, tail: torch.Tensor | None = None) -> Windows:
    """tokens: int64 [windows, length]; tail: int64 [1, tokens]."""
    return Windows(tokens, sha256="0" * 64, bos="none", documents=None, tail=tail)
