"""Check whether a widely cited analysis of generation holds for a model on this machine.

Liu et al., "Deja Vu: Contextual Sparsity for Efficient LLMs at Inference Time" (ICML 2023,
arXiv 2310.17157), sections 1 and 3: generation takes far longer than the prompt; it is bound by
loading parameters; attention and MLP both matter, and the MLP is about two thirds of what is
loaded; communication between devices is small. Imports no torch, because the report uses it too.
"""

from __future__ import annotations

from typing import NamedTuple

from prunebench.record.io import GenerationIO
from prunebench.record.speed import Breakdown, Latency

BOUND = 0.5
"""At this share of the measured bandwidth or more, a token spends most of its time on reading."""
MLP_SHARE = (0.55, 0.75)
"""'About two thirds' of the bytes of attention and MLP."""


class Finding(NamedTuple):
    """One claim, whether it holds here (None: cannot be tested here), and the figures behind it."""

    claim: str
    holds: bool | None
    evidence: str


def findings(split: Breakdown, latency: Latency, io: GenerationIO) -> list[Finding]:
    """The claims in the order of the paper, judged by the figures of one shape."""
    generation = latency.inter_token_s.median * (latency.new_tokens - 1)
    prompt = latency.ttft_s.median
    even = prompt / latency.inter_token_s.median  # tokens that take as long as the prompt
    attention, mlp = split.of("attention"), split.of("mlp")
    blocks = attention.token_bytes + mlp.token_bytes
    share = mlp.token_bytes / blocks if blocks else None
    time_share = {part.part: part.token_s / split.token_s for part in split.parts}
    both = min(time_share["attention"], time_share["mlp"]) >= 0.15
    return [
        Finding(
            "generation takes longer than the prompt",
            generation > prompt,
            f"{latency.new_tokens - 1} steps take {_ms(generation)}, "
            f"a prompt of {latency.prompt} tokens {_ms(prompt)}; "
            f"they are even at {even:.0f} generated tokens",
        ),
        Finding(
            "generation is bound by loading parameters",
            io.utilisation >= BOUND,
            f"reading {io.weight_bytes / 1e6:,.0f} MB of weights and "
            f"{io.kv_cache_bytes / 1e6:,.1f} MB of KV cache takes at least {_ms(io.floor_s)}, "
            f"a token {_ms(io.measured_s)}: {_percent(io.utilisation)} of the measured bandwidth",
        ),
        Finding(
            "attention and MLP both matter",
            both,
            f"of a token's time {_percent(time_share['attention'])} attention, "
            f"{_percent(time_share['mlp'])} MLP",
        ),
        Finding(
            "the MLP is about two thirds of the bytes that both load",
            None if share is None else MLP_SHARE[0] <= share <= MLP_SHARE[1],
            "no block is left"
            if share is None
            else f"{_percent(share)} of {blocks / 1e6:,.1f} MB a token",
        ),
        Finding("communication between devices is small", None, "one device: there is none"),
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.1f} ms"
