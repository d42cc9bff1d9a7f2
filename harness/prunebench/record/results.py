"""What the measures give. Units stand in the keys: `_s` seconds, `_bytes` bytes.

A figure that could not be had is None ("not available"), never zero.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from prunebench.record.device_results import PcieTraffic
from prunebench.schema import Part


class LinearAudit(Part):
    """One prunable weight matrix, counted on the pruned model."""

    layer: int = Field(description="index of the decoder layer in the dense model")
    name: str = Field(description="path inside the layer, e.g. 'mlp.down_proj'")
    rows: int = Field(description="output features")
    columns: int = Field(description="input features")
    zeros: int
    dense: int | None = Field(None, description="weights of the same matrix in the dense model")


class WidthAudit(Part):
    """A sub-block that is narrower than in the dense model."""

    layer: int = Field(description="index of the decoder layer in the dense model")
    kind: str = Field(
        description="'attention', counted in KV groups, or 'mlp', counted in channels"
    )
    groups: int
    groups_dense: int


class PatternAudit(Part):
    """How many aligned groups along the input dimension break an N:M pattern (keep at most N of every M)."""

    pattern: str
    groups: int
    violations: int


class Audit(Part):
    """Counted on the model itself; nothing here is a method's claim."""

    parameters: int
    parameters_dense: int
    prunable: int = Field(
        description="weights of the linears inside the decoder layers that remain"
    )
    prunable_dense: int
    zeros: int = Field(description="zeros among `prunable`")
    sparsity: float = Field(description="zeros / prunable")
    zeros_dense: int = Field(description="zeros that the dense model already had")
    removed_share: float = Field(description="1 - parameters / parameters_dense")
    memory_bytes: int = Field(description="weights and buffers in memory, shared tensors once")
    disk_bytes: int = Field(description="size as safetensors, shared tensors once")
    layers_dense: int
    kept_layers: list[int] = Field(description="indices in the dense model")
    removed_layers: list[int]
    removed_blocks: list[str] = Field(
        default_factory=list,
        description="attentions and MLPs gone from layers that remain, e.g. '12.mlp'",
    )
    widths: list[WidthAudit] = Field(
        default_factory=list, description="the sub-blocks that are narrower"
    )
    hidden: int | None = Field(None, description="channels of the residual stream")
    hidden_dense: int | None = None
    patterns: list[PatternAudit]
    form: str = Field(
        description="how the weights run: 'dense', 'dense with zeros', 'layers removed', ..."
    )
    speedup_expected: bool
    note: str = Field(description="why a speed-up can or cannot be expected")
    linears: list[LinearAudit]


class Perplexity(Part):
    """exp(total negative log-likelihood / tokens scored); windows do not overlap."""

    protocol: str = Field(
        "sparsegpt", description="whose: 'sparsegpt', 'wanda', 'llm-pruner', 'disp-llm'"
    )
    corpus: str
    split: str
    window: int = Field(description="tokens per window")
    stride: int
    windows: int = Field(description="a shorter one at the end included")
    tail_tokens: int = Field(
        0, description="tokens of that shorter window; 0 where the tail is dropped or there is none"
    )
    tokens_scored: int = Field(description="all but the first of every window")
    bos: str = Field(
        description="where a begin-of-sequence token stands: 'none', 'first window', 'as in the file'"
    )
    tokens_sha256: str
    nll: float = Field(description="mean negative log-likelihood in nats per token")
    nll_stderr: float | None = Field(description="standard error over windows")
    perplexity: float


class TaskMetric(Part):
    """One metric of one task, as lm-eval aggregates it."""

    metric: str = Field(description="e.g. 'acc', 'acc_norm'")
    filter: str = Field(
        description="what lm-eval does to the answers before it scores them; 'none' mostly"
    )
    value: float | None
    stderr: float | None
    higher_is_better: bool = True


class TaskResult(Part):
    """One task of lm-eval, or the aggregate of one of its groups."""

    task: str = Field(description="as lm-eval has it")
    group: str | None = Field(None, description="the group that it is a part of")
    aggregate: bool = Field(False, description="the aggregate of a group, not a task of its own")
    asked: bool = Field(
        description="stands for what the suite names and counts in the mean over tasks"
    )
    data: str = Field(description="'hub', registered data, or a folder's name")
    num_fewshot: int | None = Field(
        description="examples before each question; None where a group's tasks differ"
    )
    version: str | None = Field(description="lm-eval's version of the task")
    samples: int = Field(description="documents scored")
    samples_total: int | None = Field(description="that there are")
    metrics: list[TaskMetric]
    headline: str = Field(description="the metric that stands for the task, one of `metrics`")
    seeds: dict[str, int] = Field(description="random, numpy, torch, fewshot: lm-eval's defaults")
    harness: str = Field(description="version of lm-eval")

    @property
    def headline_metric(self) -> TaskMetric:
        """The metric that stands for the task, with its first filter."""
        return next(one for one in self.metrics if one.metric == self.headline)

    @property
    def value(self) -> float | None:
        """The headline score."""
        return self.headline_metric.value

    @property
    def stderr(self) -> float | None:
        """Its standard error."""
        return self.headline_metric.stderr


class MetricFigure(Part):
    """One number of a plugin's metric."""

    name: str = Field(description="the metric's own name, or that of a figure beside it")
    unit: str = Field(
        description="'share' for what lies between 0 and 1; empty where there is none"
    )
    higher_is_better: bool
    value: float | None
    reason: str | None = Field(None, description="why there is no value")


class MetricResult(Part):
    """One metric that a plugin registered, on this model."""

    metric: str
    label: str = Field(description="with the options that the suite names")
    distribution: str = Field(description="that provides it")
    version: str = Field(description="of that distribution")
    text: str | None = Field(None, description="corpus and split; None where it looks at no text")
    windows: int | None = None
    window: int | None = Field(None, description="tokens per window")
    tokens_sha256: str | None = None
    figures: list[MetricFigure]
    seconds: float = Field(
        description="with loading the dense model, for the first metric that asks for it"
    )


class Summary(Part):
    """Raw samples in a few numbers, all in the unit of the key that holds them."""

    count: int
    minimum: float
    median: float
    mean: float
    p90: float
    p99: float
    maximum: float


class Ratio(Part):
    """Dense time / pruned time over paired, interleaved rounds: above 1 is faster. Bootstrap 95 % interval."""

    estimate: float
    low: float
    high: float
    rounds: int


class Latency(Part):
    """Greedy decoding with a KV cache at one shape."""

    prompt: int
    new_tokens: int
    batch_size: int
    device: str
    execution: str = Field(
        description="how a token is computed: 'eager', 'static', 'lean', 'compiled', 'cuda-graph'"
    )
    same_tokens: bool | None = Field(
        None, description="whether it gives the tokens of eager decoding; None where it is eager"
    )
    execution_notes: list[str] = Field(
        default_factory=list, description="why faster forms were passed over"
    )
    weights: str = Field(
        "as stored", description="'2:4 kernels' where they ran in the sparse tensor cores' format"
    )
    unpaired: str | None = Field(
        None, description="why no dense rounds stand between this model's, where none do"
    )
    warmup_rounds: int
    rounds: int
    ttft_s: Summary = Field(description="prompt phase: time to first token")
    inter_token_s: Summary = Field(description="generation phase: time between tokens")
    tokens_per_s: float = Field(
        description="generated tokens per second over the whole batch, generation phase"
    )
    dense_ttft_s: Summary | None = Field(
        None, description="the dense model's rounds between this model's"
    )
    dense_inter_token_s: Summary | None = None
    ttft_speedup: Ratio | None = Field(None, description="None for the dense model itself")
    inter_token_speedup: Ratio | None = None


class FormTime(Part):
    """One execution form beside the others."""

    form: str
    inter_token_s: float | None = Field(
        None, description="median; None where the model cannot run so"
    )
    speedup: Ratio | None = Field(None, description="over `generate()` of transformers")
    same_tokens: bool | None = None
    note: str | None = None


class PartShare(Part):
    """One part of the model in both phases, timed eagerly."""

    part: str = Field(description="'attention', 'mlp', 'norms', 'head', 'rest'")
    prompt_s: float = Field(description="of one prompt phase")
    token_s: float = Field(description="of one generated token")
    token_bytes: int = Field(
        description="that a generated token reads: weights, and the KV cache in the attention"
    )


class Breakdown(Part):
    """Where the time and the bytes go at one shape; eager execution with hooks on the modules."""

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


class GpuMemory(Part):
    """Peaks of one phase or cell on the GPU."""

    nvml_device_bytes: int | None
    nvml_process_bytes: int | None
    allocated_bytes: int | None
    reserved_bytes: int | None


class PhaseMemory(Part):
    phase: str
    peak_rss_bytes: int | None
    uss_bytes: int | None = Field(
        None, description="unique set size of the process when the phase ended"
    )
    gpu: GpuMemory | None = None


class Memory(Part):
    source: str
    interval_s: float
    baseline_rss_bytes: int | None = Field(
        description="before the model is loaded: the interpreter and libraries"
    )
    peak_rss_bytes: int | None
    uss_bytes: int | None = Field(description="unique set size after the measurements")
    gpu: GpuMemory | None = None
    phases: list[PhaseMemory]
    problem: str | None = Field(
        None, description="what went wrong with the sampling, where something did"
    )


class LoadIO(Part):
    bytes: int = Field(description="size of the weight files")
    seconds: float
    host_s: float | None = Field(None, description="from the files into host memory")
    device_s: float | None = Field(
        None, description="from there to the device; None where the two were not apart"
    )
    device_bytes: int | None = Field(None, description="that were moved to the device")
    pcie: PcieTraffic | None = None
    disk_read_bytes: int | None = Field(
        description="bytes that came from the block device, by the kernel's count"
    )
    cache: Literal["cold", "warm", "mixed"] | None = Field(
        description="page cache, from the two byte counts"
    )


class GenerationIO(Part):
    """The generation I/O floor: one token must read these bytes, so it takes at least `floor_s`."""

    prompt: int
    new_tokens: int
    batch_size: int
    weight_bytes: int
    kv_cache_bytes: int = Field(description="mean over the generated tokens")
    bandwidth_bytes_per_s: float
    bandwidth_source: str
    floor_s: float
    measured_s: float = Field(description="median inter-token latency")
    utilisation: float = Field(description="floor_s / measured_s")


class IO(Part):
    load: LoadIO
    generation: list[GenerationIO]


class PhaseSpan(Part):
    """When a phase ran, in seconds since the cell began."""

    phase: str
    start_s: float
    end_s: float


class Timeline(Part):
    """Memory over time, decimated to at most 600 points."""

    time_s: list[float]
    rss_bytes: list[int]
    gpu_bytes: list[int] | None = Field(
        None, description="of the process, else of the whole device"
    )
    gpu_device_bytes: list[int] | None = Field(
        None, description="of the whole device, beside the process's own"
    )
    phases: list[PhaseSpan]


class LatencySamples(Part):
    """Raw samples of one `Latency`, same order; one inner list a round."""

    ttft_s: list[float]
    inter_token_s: list[list[float]]
    dense_ttft_s: list[float] | None = None
    dense_inter_token_s: list[list[float]] | None = None
