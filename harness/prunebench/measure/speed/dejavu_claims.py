"""Check whether a widely cited analysis of generation holds for a model on this machine.

Liu et al., "Deja Vu: Contextual Sparsity for Efficient LLMs at Inference Time" (ICML 2023,
arXiv 2310.17157), sections 1 and 3: generation takes far longer than the prompt; it is bound by
loading parameters; attention and MLP both matter, and the MLP is about two thirds of what is
loaded; communication between devices is small. Imports no torch, because the report uses it too.
"""

from __future__ import annotations

from typing import NamedTuple

from prunebench.record.io import GenerationIO
from prunebench.record.speed import OF_MIXTURES, Breakdown, Latency

BOUND = 0.5
"""At this share of the measured bandwidth or more, a token spends most of its time on reading."""
MLP_SHARE = (0.55, 0.75)
"""'About two thirds' of the bytes of attention and MLP."""
NOT_MEASURED = "not measurable here"


class Finding(NamedTuple):
    """One claim, whether it holds here (None: cannot be tested here), and the figures behind it."""

    claim: str
    holds: bool | None
    evidence: str


def findings(split: Breakdown | None, latency: Latency, io: GenerationIO | None) -> list[Finding]:
    """The claims in the order of the paper, judged by the figures of one shape.

    A claim whose figures could not be measured here is neither true nor false.
    """
    return [
        _generation_is_longer(latency),
        _bound_by_loading(io),
        _both_blocks_matter(split),
        _mlp_is_two_thirds(split),
        Finding("communication between devices is small", None, "one device: there is none"),
    ]


def _generation_is_longer(latency: Latency) -> Finding:
    claim = "generation takes longer than the prompt"
    if latency.inter_token_s is None or latency.ttft_s is None:
        return Finding(claim, None, latency.not_measurable or NOT_MEASURED)
    step, prompt = latency.inter_token_s.median, latency.ttft_s.median
    generation = step * (latency.new_tokens - 1)
    return Finding(
        claim,
        generation > prompt,
        f"{latency.new_tokens - 1} steps take {_ms(generation)}, "
        f"a prompt of {latency.prompt} tokens {_ms(prompt)}; "
        f"they are even at {prompt / step:.0f} generated tokens",
    )


def _bound_by_loading(io: GenerationIO | None) -> Finding:
    claim = "generation is bound by loading parameters"
    if io is None or io.utilisation is None or io.measured_s is None:
        return Finding(claim, None, NOT_MEASURED)
    return Finding(
        claim,
        io.utilisation >= BOUND,
        f"reading {io.weight_bytes / 1e6:,.0f} MB of weights and "
        f"{io.kv_cache_bytes / 1e6:,.1f} MB of KV cache takes at least {_ms(io.floor_s)}, "
        f"a token {_ms(io.measured_s)}: {_percent(io.utilisation)} of the measured bandwidth",
    )


def _both_blocks_matter(split: Breakdown | None) -> Finding:
    claim = "attention and MLP both matter"
    if split is None:
        return Finding(claim, None, NOT_MEASURED)
    share = {part.part: part.token_s / split.token_s for part in split.parts}
    share["mlp"] += sum(share.get(part, 0.0) for part in OF_MIXTURES)
    return Finding(
        claim,
        min(share["attention"], share["mlp"]) >= 0.15,
        f"of a token's time {_percent(share['attention'])} attention, {_percent(share['mlp'])} MLP",
    )


def _mlp_is_two_thirds(split: Breakdown | None) -> Finding:
    claim = "the MLP is about two thirds of the bytes that both load"
    if split is None:
        return Finding(claim, None, NOT_MEASURED)
    mlp = sum(part.token_bytes for part in split.parts if part.part in {"mlp", *OF_MIXTURES})
    blocks = split.of("attention").token_bytes + mlp
    if not blocks:
        return Finding(claim, None, "no block is left")
    share = mlp / blocks
    return Finding(
        claim,
        MLP_SHARE[0] <= share <= MLP_SHARE[1],
        f"{_percent(share)} of {blocks / 1e6:,.1f} MB a token",
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.1f} ms"
