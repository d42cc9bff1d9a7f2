"""How good the pruned model is: perplexity, the scores of tasks, and the metrics of plugins.

A figure that is not available is None, never zero.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from prunebench.schema import Part


class Perplexity(Part):
    """exp(total negative log-likelihood / tokens scored); windows do not overlap."""

    protocol: str = Field(
        "sparsegpt",
        description="whose protocol: 'sparsegpt', 'wanda', 'llm-pruner' or 'disp-llm'",
    )
    corpus: str
    split: str
    window: int = Field(description="tokens per window")
    stride: int
    windows: int = Field(description="including a shorter one at the end")
    tail_tokens: int = Field(
        0, description="tokens of that shorter window; 0 if it is dropped or there is none"
    )
    tokens_scored: int = Field(description="all tokens but the first of every window")
    bos: str = Field(
        description="which windows begin with a begin-of-sequence token: 'none', 'first window', "
        "'as in the file'"
    )
    tokens_sha256: str
    nll: float = Field(description="mean negative log-likelihood in nats per token")
    nll_stderr: float | None = Field(description="standard error over windows")
    perplexity: float
    window_nll: list[float] | None = Field(
        None,
        description="negative log-likelihood of each window in nats, in order, so that two models "
        "can be compared window by window; None in records of older versions",
    )

    @property
    def window_tokens(self) -> list[int]:
        """Tokens scored of each window: all but its first, and fewer of a shorter last one."""
        scored = [self.window - 1] * self.windows
        if self.tail_tokens:
            scored[-1] = self.tail_tokens - 1
        return scored


class TaskMetric(Part):
    """One metric of one task, as lm-eval aggregates it."""

    metric: str = Field(description="e.g. 'acc', 'acc_norm'")
    filter: str = Field(
        description="what lm-eval does to the answers before it scores them; usually 'none'"
    )
    value: float | None
    stderr: float | None
    higher_is_better: bool = True


class TaskResult(Part):
    """One task of lm-eval, or the aggregate of one of its groups."""

    task: str = Field(description="its name in lm-eval")
    group: str | None = Field(None, description="the group that the task belongs to")
    aggregate: bool = Field(False, description="the aggregate of a group, not a task of its own")
    asked: bool = Field(
        description="whether the suite names this entry; such entries make the mean over tasks"
    )
    data: str = Field(description="'hub', registered data, or a folder's name")
    data_commit: str | None = Field(None, description="commit of its data set on the hub")
    num_fewshot: int | None = Field(
        description="examples before each question; None if the tasks of a group differ"
    )
    version: str | None = Field(description="lm-eval's version of the task")
    samples: int = Field(description="documents scored")
    samples_total: int | None = Field(description="documents that the task has")
    metrics: list[TaskMetric]
    headline: str = Field(description="the metric that represents the task, one of `metrics`")
    generative: bool = Field(
        False, description="whether the model writes its answers instead of choosing them"
    )
    seeds: dict[str, int] = Field(description="random, numpy, torch, fewshot: lm-eval's defaults")
    harness: str = Field(description="version of lm-eval")
    answers: str | None = Field(
        None,
        description="the answer to each question in order, separated by spaces: the number of the "
        "choice that the headline metric takes, whether the wanted text is the likeliest (0 or 1), "
        "or the first digits of the SHA-256 of what was written; null for an aggregate",
    )
    correct: str | None = Field(
        None,
        description="1 or 0 for each question in order, if the headline metric is right or wrong",
    )
    one_by_one: str | None = Field(
        None,
        description="why each text went through the model alone, although texts that begin alike "
        "can share that; null if they shared it, and in records of older versions",
    )

    @property
    def headline_metric(self) -> TaskMetric:
        """The metric that represents the task, with its first filter."""
        return next(one for one in self.metrics if one.metric == self.headline)

    @property
    def value(self) -> float | None:
        """The headline score."""
        return self.headline_metric.value

    @property
    def stderr(self) -> float | None:
        """The standard error of the headline score."""
        return self.headline_metric.stderr


class MetricFigure(Part):
    """One number of a plugin's metric."""

    name: str = Field(description="the name of the metric, or of another figure that it gives")
    unit: str = Field(description="'share' for values between 0 and 1; empty if there is no unit")
    higher_is_better: bool
    value: float | None
    reason: str | None = Field(None, description="why there is no value")


class MetricResult(Part):
    """What one metric of a plugin measured on this model."""

    metric: str
    label: str = Field(description="the name with the options that the suite gives")
    distribution: str = Field(description="the package that provides the metric")
    version: str = Field(description="of that package")
    text: str | None = Field(None, description="corpus and split; None if it reads no text")
    windows: int | None = None
    window: int | None = Field(None, description="tokens per window")
    tokens_sha256: str | None = None
    figures: list[MetricFigure]
    seconds: float = Field(
        description="includes loading the dense model if this metric was the first to need it"
    )
    notes: dict[str, Any] = Field(
        default_factory=dict, description="what the metric says beside its figures; not verified"
    )
    generative: bool = Field(
        False, description="whether the metric's own figure judges what the model writes"
    )


class Quality(Part):
    """All quality figures of one cell."""

    perplexity: list[Perplexity]
    tasks: list[TaskResult] = Field(default_factory=list)
    metrics: list[MetricResult] = Field(default_factory=list, description="of plugins")

    def parts(self, result: TaskResult) -> list[TaskResult]:
        """The tasks that an aggregate is made of; a task is its only part."""
        if not result.aggregate:
            return [result]
        return [part for one in self.tasks if one.group == result.task for part in self.parts(one)]
