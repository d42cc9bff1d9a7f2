"""The columns of the table that the report embeds and `prunebench export` writes.

Each column has a name, a type and a meaning. Units are part of the name (`_s`, `_bytes`,
`_percent`); shares and ratios have none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["text", "integer", "real", "truth"]

Row = dict[str, Any]
"""One cell of a run: a value for each column name, None if it is not available."""


@dataclass(frozen=True)
class Column:
    name: str
    kind: Kind
    meaning: str


def _columns(kind: Kind, meanings: dict[str, str]) -> tuple[Column, ...]:
    return tuple(Column(name, kind, meaning) for name, meaning in meanings.items())


IDENTITY = (
    *_columns(
        "text",
        {
            "cell": "content hash of the experiment",
            "name": "the label, made unique within the run by model, run, seed or id",
            "status": "ok, failed, timeout, out-of-memory or skipped",
            "model": "label of the model",
            "model_dtype": "precision of the weights",
            "model_sha256": "hash of the model file, or its Hub revision",
            "method": "pruning method",
            "label": "method with the options that the suite sets",
            "options": "all options of the method, JSON",
            "allocation": "how the sparsity was distributed over the layers",
            "allocation_options": "all options of the allocation, JSON",
            "recovery": "how the pruned model was repaired",
            "recovery_options": "all options of the recovery, JSON",
            "distribution": "Python distribution that provides the method",
            "version": "version of that distribution",
            "device": "device that the cell ran on",
        },
    ),
    *_columns("integer", {"seed": "random seed"}),
    *_columns("text", {"dense_cell": "id of the dense cell that this cell is compared with"}),
)

QUALITY = (
    *_columns(
        "real",
        {
            "perplexity": "exp(nll)",
            "perplexity_low": "lower end of the 95 % interval over windows",
            "perplexity_high": "upper end of the 95 % interval over windows",
            "nll_nats": "mean negative log-likelihood per token",
            "nll_stderr_nats": "standard error of nll_nats over windows",
            "recovery_percent": "dense perplexity / perplexity",
            "recovery_percent_low": "lower end of its 95 % interval, paired by window",
            "recovery_percent_high": "upper end of its 95 % interval",
        },
    ),
    *_columns("text", {"perplexity_protocol": "corpus, split, window, stride, tokens scored, BOS"}),
)
"""One set for each perplexity protocol; from the second on the names end in _2, _3, ..."""

TASKS = (
    *_columns("text", {"task": "name of an lm-eval task", "task_metric": "its headline metric"}),
    *_columns(
        "real",
        {
            "task_value": "score",
            "task_stderr": "standard error of the score",
            "task_recovery_percent": "score / dense score (dense / score if lower is better)",
            "task_recovery_stderr_percent": "standard error of task_recovery_percent, paired by "
            "question if the answers are known",
            "task_z": "(score - dense score) / sqrt(stderr^2 + dense stderr^2)",
            "task_flips_percent": "questions with another answer than dense",
            "task_correct_flips_percent": "questions that became right or wrong beside dense",
        },
    ),
    *_columns("text", {"task_protocol": "shots, questions, source of the questions, versions"}),
)
"""One set for each task, numbered like `QUALITY`; none if no tasks ran."""

TASKS_TOGETHER = (
    *_columns(
        "integer",
        {
            "tasks_run": "number of tasks",
            "tasks_questions": "questions of the task with the fewest questions",
        },
    ),
    *_columns(
        "real",
        {
            "tasks_mean": "mean of the scores",
            "tasks_mean_stderr": "standard error of tasks_mean",
            "tasks_recovery_percent": "mean of task_recovery_percent over the tasks",
            "tasks_recovery_percent_low": "lower end of its 95 % interval",
            "tasks_recovery_percent_high": "upper end of its 95 % interval",
            "tasks_flips_percent": "mean of task_flips_percent over the tasks",
        },
    ),
)

METRICS = (
    *_columns(
        "text",
        {
            "metric": "name of a figure that a metric plugin reports",
            "metric_unit": "unit of the figure; empty if it has none",
        },
    ),
    *_columns("truth", {"metric_higher_is_better": "whether higher values are better"}),
    *_columns(
        "real",
        {
            "metric_value": "the figure",
            "metric_recovery_percent": "figure / dense (dense / figure if lower is better), "
            "if both are above zero",
        },
    ),
    *_columns(
        "text",
        {
            "metric_reason": "why there is no figure",
            "metric_protocol": "options, text, distribution that provides the metric, version",
        },
    ),
)
"""One set for each figure, numbered like `QUALITY`; none if the suite names no metrics."""

GATE = (
    *_columns(
        "real",
        {
            "generation_recovery_percent": "mean share of dense over generative tasks and over "
            "metrics that judge what the model writes",
            "generation_recovery_percent_low": "lower end of its 95 % interval",
            "generation_recovery_percent_high": "upper end of its 95 % interval",
        },
    ),
    *_columns(
        "truth",
        {
            "gate_passed": "whether the cell passes the quality gate: tasks_recovery_percent if "
            "every task has at least 100 questions, otherwise every recovery_percent, reaches the "
            "gate, and generation_recovery_percent its own if the suite has one; missing if the "
            "gate is inside an interval"
        },
    ),
    *_columns(
        "text", {"gate_verdict": "passed, failed, or cannot tell if the gate is inside an interval"}
    ),
)

SPEED = (
    *_columns(
        "real",
        {
            "ttft_p50_s": "time to first token, median",
            "ttft_p90_s": "time to first token, 90th percentile",
            "ttft_p99_s": "time to first token, 99th percentile",
            "inter_token_p50_s": "inter-token latency, median",
            "inter_token_p90_s": "inter-token latency, 90th percentile",
            "inter_token_p99_s": "inter-token latency, 99th percentile",
            "dense_ttft_p50_s": "the same median of the dense rounds between the cell's own",
            "dense_inter_token_p50_s": "the same median of the dense rounds between the cell's own",
            "tokens_per_s": "generated tokens per second over the whole batch",
            "ttft_speedup": "dense time / pruned time, prompt phase",
            "ttft_speedup_low": "lower end of its 95 % interval",
            "ttft_speedup_high": "upper end of its 95 % interval",
            "inter_token_speedup": "dense time / pruned time, generation phase",
            "inter_token_speedup_low": "lower end of its 95 % interval",
            "inter_token_speedup_high": "upper end of its 95 % interval",
            "inter_token_speedup_bound": "lower bound of inter_token_speedup that holds at 95 % for "
            "all cells of the model together",
            "sparse24_speedup": "inter_token_speedup with 2:4 kernels, if the GPU has them",
            "sparse24_speedup_low": "lower end of its 95 % interval",
            "sparse24_speedup_high": "upper end of its 95 % interval",
        },
    ),
    *_columns(
        "truth",
        {
            "speedup_paired": "whether the speed-ups come from rounds interleaved with dense "
            "rather than from two cells timed apart"
        },
    ),
    *_columns(
        "integer",
        {
            "rounds": "timed rounds that nothing disturbed; all figures are from these",
            "disturbed_rounds": "rounds that something else on the machine disturbed",
            "bound_rounds": "undisturbed rounds that inter_token_speedup_bound takes",
        },
    ),
    *_columns(
        "text",
        {
            "speed_not_measurable": "why there are no times, if too few rounds were undisturbed",
            "latency_protocol": "prompt, new tokens, batch size, device, execution",
            "execution": "how a token is computed: eager, static, lean, lean-packed, compiled, cuda-graph",
        },
    ),
    *_columns(
        "real",
        {
            "io_floor_s": "least time in which the bytes of one token can be read",
            "io_utilisation": "io_floor_s / inter_token_p50_s",
            "io_bytes_per_token": "bytes of weights and KV cache that one token reads",
            "bandwidth_bytes_per_s": "memory bandwidth measured on this machine",
        },
    ),
)
"""One set for each latency shape, numbered like `QUALITY`."""

RUNTIMES = (
    *_columns(
        "text",
        {
            "runtime": "name of an engine that serves models, with the options that the suite sets",
            "runtime_precision": "what the weights were converted to for it",
        },
    ),
    *_columns(
        "real",
        {
            "runtime_ttft_p50_s": "time to first token in the engine, median",
            "runtime_token_p50_s": "time between tokens in the engine, median",
            "runtime_token_p99_s": "the same, 99th percentile; missing if tokens come in bursts",
            "runtime_ttft_speedup": "dense time / pruned time in the engine, prompt phase",
            "runtime_ttft_speedup_low": "lower end of its 95 % interval",
            "runtime_ttft_speedup_high": "upper end of its 95 % interval",
            "runtime_speedup": "dense time / pruned time in the engine, generation phase",
            "runtime_speedup_low": "lower end of its 95 % interval",
            "runtime_speedup_high": "upper end of its 95 % interval",
        },
    ),
    *_columns(
        "integer",
        {
            "runtime_rounds": "rounds that nothing disturbed",
            "runtime_bytes": "size of the converted model",
        },
    ),
    *_columns("real", {"runtime_convert_s": "time that converting the model took"}),
    *_columns(
        "text",
        {
            "runtime_tokens": "whether its greedy tokens are those of the model's own code",
            "runtime_reason": "why there is no figure",
            "runtime_protocol": "options, precision, shape, threads, versions",
        },
    ),
)
"""One set for each engine and shape, numbered like `QUALITY`; none if the suite names no engine."""

_PARTS = {
    "attention": "attention",
    "mlp": "the MLPs",
    "norms": "the norms",
    "head": "the head",
    "rest": "the rest",
    "router": "the routers of a mixture",
    "experts": "the routed experts of a mixture",
}

BREAKDOWN = (
    *_columns(
        "real",
        {
            f"{part}_{key}": f"time of {unit} spent in {name}, timed eagerly"
            for part, name in _PARTS.items()
            for key, unit in (("prompt_s", "one prompt"), ("token_s", "one generated token"))
        },
    ),
    *_columns(
        "integer",
        {
            f"{part}_token_bytes": f"bytes that one token reads in {name}"
            for part, name in _PARTS.items()
        },
    ),
    *_columns(
        "real",
        {
            "dram_utilisation": "DRAM traffic / peak bandwidth during generation, "
            "by NVML's GPM counters"
        },
    ),
)

SIZE = (
    *_columns(
        "real",
        {
            "sparsity": "zeros / prunable weights, counted",
            "sparsity_of_experts": "the same of the routed experts alone",
            "sparsity_without_experts": "the same of all other linears in the layers",
            "removed_share": "1 - parameters / parameters of dense",
        },
    ),
    *_columns(
        "integer",
        {
            "zeros": "zeros among the prunable weights",
            "zeros_dense": "zeros that the dense model already had",
            "parameters": "parameters that remain",
            "experts": "routed experts that remain in a layer",
            "layers": "decoder layers that remain",
            "layers_removed": "decoder layers removed",
            "memory_bytes": "weights and buffers in memory",
            "disk_bytes": "size as safetensors",
        },
    ),
    *_columns(
        "real",
        {
            "parameters_ratio": "parameters / parameters of dense",
            "memory_ratio": "memory_bytes / memory_bytes of dense",
            "disk_ratio": "disk_bytes / disk_bytes of dense",
            "peak_rss_ratio": "peak_rss_bytes / peak_rss_bytes of dense",
        },
    ),
    *_columns(
        "text",
        {
            "form": "form in which the weights ran, e.g. dense with zeros",
            "granularity": "what was pruned, by counting: "
            "unstructured, n:m, width, experts, blocks, layers, none",
            "pattern": "the N:M pattern that no group breaks, e.g. 2:4",
        },
    ),
    *_columns("truth", {"speedup_expected": "whether the hardware can make use of that form"}),
)

DEVICES = (
    *_columns(
        "integer",
        {
            "peak_rss_bytes": "peak resident set of the cell's process",
            "uss_bytes": "unique set size after the measurements",
            "peak_gpu_bytes": "peak GPU memory of the process",
            "generate_gpu_bytes": "GPU memory allocated while only the pruned model generates",
            "load_bytes": "size of the weight files",
        },
    ),
    *_columns(
        "real",
        {
            "joules_per_token": "energy of a generated token, by the counter in energy_source",
            "joules_per_prompt": "energy of the prompt phase, per sequence",
            "joules_ratio": "joules_per_token / joules_per_token of dense, by the same counter",
            "idle_w": "power while the process waits; not subtracted from the energies",
        },
    ),
    *_columns("text", {"energy_source": "the energy counter, or why there is none"}),
    *_columns(
        "truth",
        {"gpu_shared": "whether other processes used the GPU; missing if that is unknown"},
    ),
    *_columns(
        "real",
        {
            "cpu_others_share": "share of the usable cores' CPU time that others took "
            "during a timed phase, the worst one"
        },
    ),
)

COST = (
    *_columns(
        "real",
        {
            "load_s": "time to load the dense model",
            "load_host_s": "time from the files to host memory",
            "load_device_s": "time from host memory to the device",
        },
    ),
    *_columns("text", {"load_cache": "state of the page cache during loading"}),
    *_columns("real", {"prune_s": "time of the method alone, calibration included"}),
    *_columns(
        "integer",
        {
            "calibration_tokens": "calibration tokens that the method saw",
            "prune_peak_rss_bytes": "peak resident set during pruning",
            "prune_peak_gpu_bytes": "peak GPU memory during pruning",
        },
    ),
    *_columns("text", {"calibration_sha256": "hash of the calibration tokens"}),
    *_columns("real", {"recover_s": "time of the recovery alone, training included"}),
    *_columns("integer", {"recover_tokens": "tokens seen during the recovery's training"}),
    *_columns("text", {"recover_sha256": "hash of the training windows"}),
    *_columns("real", {"total_s": "time of the whole cell"}),
)

OUTCOME = _columns(
    "text",
    {
        "started": "start of the cell, UTC",
        "finished": "end of the cell, UTC",
        "error_phase": "phase in which the cell failed",
        "error_type": "class of the error",
        "error_message": "message of the error",
        "error_hint": "how to fix the error",
    },
)

PUBLISHED = (
    *_columns("text", {"published_metric": "quantity that a published figure reports"}),
    *_columns(
        "real",
        {
            "published_value": "published figure: task scores in per cent, shares as fractions",
            "published_measured": "the same quantity, measured on this cell",
            "published_difference": "measured / published - 1",
        },
    ),
    *_columns(
        "truth", {"published_agrees": "whether the difference is within the figure's tolerance"}
    ),
    *_columns("text", {"published_source": "publication that reports the figure"}),
)
"""One set for each published figure of the cell, numbered like `QUALITY`; often none."""

# In the order of the table; `column_names` repeats the sets that are numbered.
ALL = (
    *IDENTITY,
    *QUALITY,
    *TASKS,
    *TASKS_TOGETHER,
    *METRICS,
    *GATE,
    *SPEED,
    *RUNTIMES,
    *BREAKDOWN,
    *SIZE,
    *DEVICES,
    *COST,
    *OUTCOME,
    *PUBLISHED,
)
_KINDS = {column.name: column.kind for column in ALL}


def kind_of(name: str) -> Kind:
    """The type of a column, also of a numbered one (``perplexity_2``)."""
    return _KINDS[name] if name in _KINDS else _KINDS[re.sub(r"_\d+$", "", name)]


def column_names(
    perplexities: int,
    shapes: int,
    published: int = 0,
    tasks: int = 0,
    metrics: int = 0,
    runtimes: int = 0,
) -> list[str]:
    """All column names in order, with as many numbered sets as given.

    A table always has at least one set for perplexity and one for latency, even if they are empty.
    """

    def sets(columns: tuple[Column, ...], count: int) -> list[str]:
        return [numbered(column.name, index) for index in range(count) for column in columns]

    return [
        *sets(IDENTITY, 1),
        *sets(QUALITY, max(1, perplexities)),
        *sets(TASKS, tasks),
        *(sets(TASKS_TOGETHER, 1) if tasks else ()),
        *sets(METRICS, metrics),
        *sets(GATE, 1),
        *sets(SPEED, max(1, shapes)),
        *sets(RUNTIMES, runtimes),
        *sets((*BREAKDOWN, *SIZE, *DEVICES, *COST, *OUTCOME), 1),
        *sets(PUBLISHED, published),
    ]


def numbered(name: str, index: int) -> str:
    """The column ``name`` of the set with this index, counted from 0."""
    return name if index == 0 else f"{name}_{index + 1}"
