"""Sixteen types of causal LMs, of every kind, at two levels; `tox run -e families` has all."""

from __future__ import annotations

import pytest

import families.depth
import families.weights  # noqa: F401 - registers its checks
from families.levels import LEVELS, WORKS
from prunebench.app.families import all_levels

SAMPLE = (
    "bloom",
    "deepseek_v3",
    "diffllama",
    "falcon",
    "gemma3",
    "gemma3n_text",
    "glm4_moe",
    "gpt2",
    "gpt_oss",
    "granite",
    "jamba",
    "olmo2",
    "phi3",
    "qwen3_5",
    "qwen3_moe",
    "zamba2",
)


@pytest.mark.parametrize("model_type", SAMPLE)
def test_a_type_works_or_says_why_not(model_type: str) -> None:
    for level in ("weights", "depth"):
        said = LEVELS[level](model_type)
        known = all_levels()[model_type][level]
        assert said == (f"refused: {known}" if known else WORKS), level
