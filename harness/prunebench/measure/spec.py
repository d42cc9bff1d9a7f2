"""What is to be timed."""

from __future__ import annotations

from pydantic import Field

from prunebench.schema import Frozen


class LatencySpec(Frozen):
    """One shape to time: prompt phase and generation phase of greedy decoding with a KV cache."""

    prompt: int = Field(gt=0, description="prompt tokens")
    new_tokens: int = Field(gt=1, description="generated tokens")
    batch_size: int = Field(gt=0)
    min_rounds: int = Field(gt=0)
    min_time_s: float = Field(ge=0)
