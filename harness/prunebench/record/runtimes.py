"""How fast the model runs in the engines that serve it. All times are in seconds."""

from __future__ import annotations

from pydantic import Field

from prunebench.record.speed import Ratio, Summary
from prunebench.schema import Part

EXACT = "fp32"
"""The precision in which a runtime must give the tokens of the model."""


class TokenAgreement(Part):
    """The greedy tokens of a runtime beside those of the model's own code on the same prompt."""

    compared: int
    first_difference: int | None = Field(
        None, description="index of the first token that differs, from 0; None if none does"
    )
    margin: float | None = Field(
        None,
        description="logit of the model's own token minus that of the runtime's, at the first"
        " difference, by the model's own code",
    )
    rounding: float | None = Field(
        None, description="a margin up to this may come from the order of sums"
    )

    @property
    def same(self) -> bool:
        """Whether no token differs, apart from ties: after a tie texts go different ways."""
        if self.margin is None or self.rounding is None:
            return self.first_difference is None
        return self.margin <= self.rounding


class RuntimeLatency(Part):
    """One shape in one runtime: rounds of the pruned model alternate with rounds of dense."""

    prompt: int
    new_tokens: int
    threads: int
    rounds: int = Field(description="undisturbed rounds, which all figures are from")
    disturbed_rounds: int = 0
    not_measurable: str | None = Field(
        None, description="why there is no figure, if too few rounds were undisturbed"
    )
    not_watched: str | None = None
    unpaired: str | None = Field(None, description="why dense was not timed in between")
    bursts: bool = Field(
        False,
        description="whether tokens arrive in bunches: then the times between two of them mean"
        " nothing, and `token_s` is the mean of each round",
    )
    ttft_s: Summary | None = Field(None, description="time to first token")
    token_s: Summary | None = Field(
        None, description="time between tokens; with bursts the mean of each round"
    )
    dense_ttft_s: Summary | None = None
    dense_token_s: Summary | None = None
    ttft_speedup: Ratio | None = None
    token_speedup: Ratio | None = Field(
        None, description="of the generation phase, paired round by round"
    )
    tokens: TokenAgreement | None = None


class Conversion(Part):
    """What converting a model for a runtime took, and what came out."""

    seconds: float
    bytes: int
    earlier: bool = Field(description="whether an earlier cell or run had converted it")


class RuntimeResult(Part):
    """One runtime in one cell."""

    runtime: str = Field(description="name, and the options that the suite names")
    precision: str
    versions: dict[str, str] = Field(
        default_factory=dict, description="versions of the distributions that it runs"
    )
    reason: str | None = Field(None, description="why there is no figure")
    conversion: Conversion | None = None
    dense_conversion: Conversion | None = None
    latency: list[RuntimeLatency] = Field(
        default_factory=list, description="one for each shape of the suite with batch size 1"
    )
