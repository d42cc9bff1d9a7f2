"""The seeded models and the tokenizer of the contract kit, by a short name."""

from __future__ import annotations

from prunebench.testing.models import (
    FAMILIES,
    VOCABULARY,
    tiny_checkpoint,
    tiny_model,
    tiny_tokenizer,
)

__all__ = ["FAMILIES", "VOCABULARY", "tiny_checkpoint", "tiny_model", "tiny_tokenizer"]
