"""How fast the model generates, and where the time goes. All times are in seconds."""

from __future__ import annotations

from pydantic import Field

from prunebench.record.devices import DramTraffic
from prunebench.schema import Part


class Summary(Part):
    """A summary of raw samples, in the unit of the key that holds it."""

    count: int
    minimum: float
    median: float
    mean: float
    p90: float
    p99: float
    maximum: float


class Ratio(Part):
    """Dense time / pruned time over paired, interleaved rounds: median and its 95 % interval.

    Above 1 the pruned model is faster.
    """

    estimate: float
    low: float | None = Field(description="None if fewer than six rounds were timed")
    high: float | None
    rounds: int


class Latency(Part):
    """Greedy decoding with a KV cache at one shape."""

    prompt: int
    new_tokens: int
    batch_size: int
    device: str
    execution: str = Field(
        description="how a token is computed: 'eager', 'static', 'lean', 'lean-packed', 'compiled',"
        " 'cuda-graph'"
    )
    second_copy_bytes: int = Field(
        0,
        description="of weights that the execution form holds a second time, in another layout; in"
        " no other figure",
    )
    products: dict[str, str] = Field(
        default_factory=dict,
        description="the kernel of each product of a lean form, by shape: '960 x 576' -> 'vector'",
    )
    same_tokens: bool | None = Field(
        None, description="whether it gives the tokens of eager decoding; None if it is eager"
    )
    execution_notes: list[str] = Field(
        default_factory=list, description="why faster forms were not used"
    )
    weights: str = Field(
        "as stored",
        description="'2:4 kernels' if they ran in the format of the sparse tensor cores",
    )
    unpaired: str | None = Field(
        None, description="why no rounds of the dense model were interleaved, if none were"
    )
    warmup_rounds: int
    rounds: int = Field(description="undisturbed rounds, which all figures are from")
    disturbed_rounds: int = Field(0, description="rounds that were repeated, in no figure")
    not_measurable: str | None = Field(
        None, description="why there is no figure, if too few rounds were undisturbed"
    )
    not_watched: str | None = Field(
        None, description="why nothing is known of disturbances, if this system does not tell"
    )
    ttft_s: Summary | None = Field(None, description="prompt phase: time to first token")
    inter_token_s: Summary | None = Field(None, description="generation phase: time between tokens")
    tokens_per_s: float | None = Field(
        None, description="generated tokens per second over the whole batch, generation phase"
    )
    dense_ttft_s: Summary | None = Field(
        None, description="of the interleaved rounds of the dense model"
    )
    dense_inter_token_s: Summary | None = None
    ttft_speedup: Ratio | None = Field(None, description="None for the dense model itself")
    inter_token_speedup: Ratio | None = None


class LatencySamples(Part):
    """Raw samples of one `Latency`, in the same order; one inner list per round."""

    ttft_s: list[float]
    inter_token_s: list[list[float]]
    dense_ttft_s: list[float] | None = None
    dense_inter_token_s: list[list[float]] | None = None
    disturbed: list[str | None] | None = Field(
        None, description="what disturbed each round; None in records from before it was watched"
    )


class FormTime(Part):
    """One execution form, compared with `generate()` of transformers."""

    form: str
    inter_token_s: float | None = Field(
        None, description="median; None if the model cannot run in this form"
    )
    speedup: Ratio | None = Field(None, description="over `generate()` of transformers")
    same_tokens: bool | None = None
    second_copy_bytes: int = Field(
        0, description="of weights that this form holds a second time, in another layout"
    )
    note: str | None = None


OF_MIXTURES = ("router", "experts")
"""The parts that only mixtures have. Their shared experts and dense layers are in 'mlp'."""


class PartShare(Part):
    """One part of the model in both phases, timed eagerly."""

    part: str = Field(
        description="'attention', 'mlp', 'norms', 'head', 'rest'; of mixtures also 'router' and"
        " 'experts'; then shared experts are in 'mlp'"
    )
    prompt_s: float = Field(description="of one prompt phase")
    token_s: float = Field(description="of one generated token")
    token_bytes: int = Field(
        description="read for one generated token: weights, and the KV cache in the attention"
    )


class Breakdown(Part):
    """Where time and bytes go at one shape; eager execution with hooks on the modules."""

    prompt: int
    new_tokens: int
    batch_size: int
    rounds: int
    parts: list[PartShare]

    @property
    def prompt_s(self) -> float:
        return sum(part.prompt_s for part in self.parts)

    @property
    def token_s(self) -> float:
        return sum(part.token_s for part in self.parts)

    def of(self, name: str) -> PartShare:
        return next(part for part in self.parts if part.part == name)


class Speed(Part):
    """Latency at every shape, and then again with 2:4 kernels if the model ran with them."""

    latency: list[Latency]
    breakdown: Breakdown | None = Field(None, description="of the first shape")
    breakdown_reason: str | None = Field(None, description="why there is no breakdown")
    dram: DramTraffic | None = Field(
        None, description="of the GPU's memory in the generation phase, by its counters"
    )
