"""Sixteen types of causal LMs, of every kind, are looked at; `tox run -e families` tries all."""

from __future__ import annotations

import pytest
import torch

from families.weights import TOKENS, planned
from prunebench import Context, PrunebenchError, anatomy
from prunebench.app.families import all_levels
from prunebench.model.depth import keep_layers
from prunebench.testing.any_type import tiny_model

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
    known = all_levels()[model_type]
    if known["weights"]:
        with pytest.raises(PrunebenchError, match="share one attention"):
            planned(model_type)
        with pytest.raises(PrunebenchError, match="has the same weights"):
            anatomy(tiny_model(model_type))
        return
    model = planned(model_type)
    for linear in Context(None, 0, []).linears(model).values():
        with torch.no_grad():
            linear.weight[:, ::2] = 0
    assert bool(torch.isfinite(model(input_ids=TOKENS).logits).all())
    parts = anatomy(model)
    for index in (1, 2):
        try:
            keep_layers(parts, [each for each in range(4) if each != index])
        except PrunebenchError as error:
            assert len(error.message.split()) > 6
        else:
            assert len(anatomy(model).layers) == 3
            return
    assert known["depth"], "no layer could be removed"
