"""The columns of the one table: name, type and meaning. Units stand in the names; shares and ratios have none."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "integer", "real", "truth"]


@dataclass(frozen=True)
class Field:
    name: str
    kind: Kind
    meaning: str


def _fields(kind: Kind, meanings: dict[str, str]) -> tuple[Field, ...]:
    return tuple(Field(name, kind, meaning) for name, meaning in meanings.items())


IDENTITY = (
    *_fields(
        "text",
        {
            "cell": "content hash of the experiment",
            "name": "the label, with what tells it from the others of the table",
            "status": "ok, failed, timeout, out-of-memory or skipped",
            "model": "label of the model",
            "model_dtype": "precision of the weights",
            "model_sha256": "hash of the model file, or its Hub revision",
            "method": "pruning method",
            "label": "method with the options that the suite names",
            "options": "all options, JSON",
            "allocation": "how the share was spread over the model",
            "allocation_options": "all its options, JSON",
            "recovery": "what repaired the pruned model",
            "recovery_options": "all its options, JSON",
            "distribution": "distribution that provides the method",
            "version": "its version",
            "device": "where the cell ran",
        },
    ),
    *_fields("integer", {"seed": "seed"}),
    *_fields("text", {"dense_cell": "the dense cell that this one is compared with"}),
)

QUALITY = (
    *_fields(
        "real",
        {
            "perplexity": "exp(nll)",
            "perplexity_low": "lower end of the 95 % interval over windows",
            "perplexity_high": "upper end of it",
            "nll_nats": "mean negative log-likelihood of a token",
            "nll_stderr_nats": "its standard error over windows",
            "recovery_percent": "dense perplexity / perplexity",
        },
    ),
    *_fields("text", {"perplexity_protocol": "corpus, split, window, stride, tokens scored, BOS"}),
)
"""One set a perplexity protocol; from the second on the names end in _2, _3, ..."""

TASKS = (
    *_fields("text", {"task": "a task of lm-eval", "task_metric": "the metric that stands for it"}),
    *_fields(
        "real",
        {
            "task_value": "its score",
            "task_stderr": "standard error of the score",
            "task_recovery_percent": "score / dense score (dense / score where lower is better)",
            "task_z": "difference from dense over the root of the sum of the squared standard errors",
        },
    ),
    *_fields("text", {"task_protocol": "shots, questions, source of the rows, versions"}),
)
"""One set a task, none where no tasks were run; from the second on numbered as the others."""

TASKS_TOGETHER = (
    *_fields(
        "integer",
        {"tasks_run": "number of tasks", "tasks_questions": "of the task that was asked least"},
    ),
    *_fields(
        "real",
        {
            "tasks_mean": "mean of the scores",
            "tasks_recovery_percent": "mean of task_recovery_percent over the tasks",
        },
    ),
)

METRICS = (
    *_fields(
        "text",
        {
            "metric": "a figure of a plugin's metric",
            "metric_unit": "its unit; empty where it has none",
        },
    ),
    *_fields("truth", {"metric_higher_is_better": "whether more of it is better"}),
    *_fields(
        "real",
        {
            "metric_value": "the figure",
            "metric_recovery_percent": "figure / dense (dense / figure where lower is better), where both are above zero",
        },
    ),
    *_fields(
        "text",
        {
            "metric_reason": "why there is no figure",
            "metric_protocol": "options, text, distribution that provides it, version",
        },
    ),
)
"""One set a figure, none where the suite names no metrics; from the second on numbered as the others."""

GATE = _fields(
    "truth",
    {
        "gate_passed": "tasks_recovery_percent, or with fewer than 100 questions a task every recovery_percent, reaches the quality gate"
    },
)

SPEED = (
    *_fields(
        "real",
        {
            "ttft_p50_s": "time to first token, median",
            "ttft_p90_s": "90th percentile",
            "ttft_p99_s": "99th percentile",
            "inter_token_p50_s": "time between tokens, median",
            "inter_token_p90_s": "90th percentile",
            "inter_token_p99_s": "99th percentile",
            "tokens_per_s": "generated tokens per second over the batch",
            "ttft_speedup": "dense time / pruned time, prompt phase",
            "ttft_speedup_low": "lower end of its 95 % interval",
            "ttft_speedup_high": "upper end of it",
            "inter_token_speedup": "dense time / pruned time, generation phase",
            "inter_token_speedup_low": "lower end of its 95 % interval",
            "inter_token_speedup_high": "upper end of it",
            "sparse24_speedup": "the same through kernels for 2:4 weights, where the GPU has them",
            "sparse24_speedup_low": "lower end of its 95 % interval",
            "sparse24_speedup_high": "upper end of it",
        },
    ),
    *_fields(
        "truth",
        {"speedup_paired": "ratios are of interleaved rounds, not of two cells timed apart"},
    ),
    *_fields("integer", {"rounds": "timed rounds"}),
    *_fields(
        "text",
        {
            "latency_protocol": "prompt, new tokens, batch size, device, execution",
            "execution": "how a token is computed: eager, static, lean, compiled, cuda-graph",
        },
    ),
    *_fields(
        "real",
        {
            "io_floor_s": "least time in which one token's bytes can be read",
            "io_utilisation": "io_floor_s / inter_token_p50_s",
            "io_bytes_per_token": "weights and KV cache that one token reads, bytes",
            "bandwidth_bytes_per_s": "measured on this machine",
        },
    ),
)
"""One set a latency shape; from the second on the names end in _2, _3, ..."""

_PARTS = {
    "attention": "attention",
    "mlp": "the MLPs",
    "norms": "the norms",
    "head": "the head",
    "rest": "the rest",
}

BREAKDOWN = (
    *_fields(
        "real",
        {
            f"{part}_{key}": f"{meaning} {name}, timed eagerly"
            for part, name in _PARTS.items()
            for key, meaning in (
                ("prompt_s", "of one prompt, in"),
                ("token_s", "of one generated token, in"),
            )
        },
    ),
    *_fields(
        "integer",
        {f"{part}_token_bytes": f"that one token reads in {name}" for part, name in _PARTS.items()},
    ),
    *_fields(
        "real",
        {
            "dram_utilisation": "DRAM traffic / peak bandwidth while generating, by NVML's GPM counters"
        },
    ),
)

REST = (
    *_fields(
        "real",
        {
            "sparsity": "zeros / prunable weights, counted",
            "removed_share": "1 - parameters / parameters of dense",
        },
    ),
    *_fields(
        "integer",
        {
            "zeros": "zeros among the prunable weights",
            "zeros_dense": "zeros that the dense model already had",
            "parameters": "parameters that remain",
            "layers": "decoder layers that remain",
            "layers_removed": "decoder layers removed",
            "memory_bytes": "weights and buffers in memory",
            "disk_bytes": "size as safetensors",
        },
    ),
    *_fields(
        "real",
        {
            "parameters_ratio": "to dense",
            "memory_ratio": "memory_bytes to dense",
            "disk_ratio": "disk_bytes to dense",
            "peak_rss_ratio": "peak_rss_bytes to dense",
        },
    ),
    *_fields(
        "text",
        {
            "form": "how the weights ran",
            "granularity": "what was pruned, counted: unstructured, n:m, width, blocks, layers, none",
        },
    ),
    *_fields("truth", {"speedup_expected": "whether the hardware can use that form"}),
    *_fields(
        "integer",
        {
            "peak_rss_bytes": "peak resident set of the cell's process",
            "uss_bytes": "unique set size after the measurements",
            "peak_gpu_bytes": "peak of the process on the GPU",
            "generate_gpu_bytes": "allocated on the GPU while only the pruned model generates",
            "load_bytes": "size of the weight files",
        },
    ),
    *_fields(
        "real",
        {
            "joules_per_token": "generation phase, by the counter of energy_source",
            "joules_per_prompt": "prompt phase, for each sequence",
            "joules_ratio": "joules_per_token to dense, by the same counter",
            "idle_w": "power while waiting, not subtracted",
        },
    ),
    *_fields("text", {"energy_source": "the counter, or why there is none"}),
    *_fields(
        "truth",
        {"gpu_shared": "other processes were on the GPU; missing where that cannot be told"},
    ),
    *_fields(
        "real",
        {
            "cpu_others_share": "CPU that others took while timing, of the cores that the cell may use"
        },
    ),
    *_fields(
        "real", {"load_s": "time to load the dense model", "load_host_s": "files to host memory"}
    ),
    *_fields("real", {"load_device_s": "host memory to device"}),
    *_fields("text", {"load_cache": "state of the page cache while loading"}),
    *_fields("real", {"prune_s": "the method alone, calibration included"}),
    *_fields(
        "integer",
        {
            "calibration_tokens": "tokens that the method saw",
            "prune_peak_rss_bytes": "peak while pruning",
            "prune_peak_gpu_bytes": "the same on the GPU",
        },
    ),
    *_fields("text", {"calibration_sha256": "hash of those tokens"}),
    *_fields("real", {"recover_s": "the recovery alone, training included"}),
    *_fields("integer", {"recover_tokens": "tokens seen in its training"}),
    *_fields("text", {"recover_sha256": "hash of its windows"}),
    *_fields("real", {"total_s": "the whole cell"}),
    *_fields(
        "text",
        {
            "started": "UTC",
            "finished": "UTC",
            "error_phase": "where it failed",
            "error_type": "class of the error",
            "error_message": "its text",
            "error_hint": "how to mend it",
        },
    ),
)

PUBLISHED = (
    *_fields("text", {"published_metric": "what a published figure is of"}),
    *_fields(
        "real",
        {
            "published_value": "the figure: scores of tasks in per cent, shares as fractions",
            "published_measured": "the same of this cell",
            "published_difference": "measured / published - 1",
        },
    ),
    *_fields("truth", {"published_agrees": "the difference is within the figure's tolerance"}),
    *_fields("text", {"published_source": "where it was published"}),
)
"""One set a published figure of the cell, none where the suite has none; from the second on numbered as the others."""

_ALL = (
    *IDENTITY,
    *QUALITY,
    *TASKS,
    *TASKS_TOGETHER,
    *METRICS,
    *GATE,
    *SPEED,
    *BREAKDOWN,
    *REST,
    *PUBLISHED,
)
_KINDS = {field.name: field.kind for field in _ALL}


def kind_of(column: str) -> Kind:
    """The type of a column, a later protocol's (``perplexity_2``) included."""
    return _KINDS[column] if column in _KINDS else _KINDS[re.sub(r"_\d+$", "", column)]


def names(
    perplexities: int, shapes: int, published: int = 0, tasks: int = 0, metrics: int = 0
) -> list[str]:
    """All columns, in order, for so many perplexity protocols and latency shapes (at least one set of each) and figures."""
    columns = [field.name for field in IDENTITY]
    columns += [
        numbered(field.name, index) for index in range(max(1, perplexities)) for field in QUALITY
    ]
    columns += [numbered(field.name, index) for index in range(tasks) for field in TASKS]
    columns += [field.name for field in TASKS_TOGETHER] if tasks else []
    columns += [numbered(field.name, index) for index in range(metrics) for field in METRICS]
    columns += [field.name for field in GATE]
    columns += [numbered(field.name, index) for index in range(max(1, shapes)) for field in SPEED]
    columns += [field.name for field in (*BREAKDOWN, *REST)]
    return columns + [
        numbered(field.name, index) for index in range(published) for field in PUBLISHED
    ]


def numbered(name: str, index: int) -> str:
    return name if index == 0 else f"{name}_{index + 1}"
