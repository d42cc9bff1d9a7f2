"""The calibration text with which most methods that remove weights are published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The loader of SparseGPT and Wanda, which later code copied: 128 windows of 2048 tokens.
C4: Mapping[str, Any] = {
    "corpus": "c4",
    "sampler": "c4-gptq",
    "windows": 128,
    "length": 2048,
}
