"""`profile` on models of every kind: hybrid, mixture, fused QKV, parallel residual, multimodal."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunebench.app import profile_model
from prunebench.errors import PrunebenchError
from prunebench.experiment.measures import LatencySpec
from prunebench.testing import tiny_checkpoint

SHAPE = LatencySpec(
    batch_size=1, execution="fastest", prompt=8, new_tokens=4, min_rounds=1, min_time_s=0.0
)
TYPES = (
    "bart",  # only its decoder is loaded
    "bloom",  # fused QKV
    "falcon",  # parallel residual, one key head
    "falcon_h1",  # an attention and a state space side by side
    "gemma3",  # a vision tower, sliding windows
    "gpt_oss",  # a mixture with sinks
    "granitemoehybrid",
    "jamba",  # state space, attention and mixture
    "minimax",  # linear attention with a cache of its own
    "phi3",
    "qwen3_5",  # linear attention
)


@pytest.mark.families
@pytest.mark.parametrize("family", TYPES)
def test_a_profile_adds_up(tmp_path: Path, family: str) -> None:
    found = profile_model(str(tiny_checkpoint(tmp_path / family, family)), SHAPE)
    assert found.breakdown is not None, found.breakdown_reason
    assert found.generation is not None, found.generation_reason
    floor = found.generation
    held = {part.part: part.token_bytes for part in found.breakdown.parts}
    assert sum(held.values()) == floor.weight_bytes + floor.kv_cache_bytes
    assert floor.kv_cache_bytes > 0
    assert all(held[part] for part in ("attention", "norms", "head"))
    assert held["mlp"] or held["experts"]
    assert sum(held.values()) - held["rest"] > 0.6 * sum(held.values())
    assert not found.flags


@pytest.mark.families
@pytest.mark.parametrize("family", ["recurrent_gemma", "reformer"])
def test_a_model_without_a_kv_cache_is_refused(tmp_path: Path, family: str) -> None:
    folder = tiny_checkpoint(tmp_path / family, family)
    with pytest.raises(PrunebenchError, match="takes no KV cache, so its tokens cannot be timed"):
        profile_model(str(folder), SHAPE)
