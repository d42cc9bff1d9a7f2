"""One cell from end to end, in the process that is called: make the pruned model, quality, profile -> Record."""

from __future__ import annotations

import time
import traceback
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from prunebench.calibration.windows import evaluation_windows
from prunebench.cell.events import EventWriter
from prunebench.cell.make import Made, Workbench, make, vocabulary, workbench
from prunebench.cell.phases import Phases
from prunebench.cell.record import Cost, Error, Quality, Record, Samples, Speed
from prunebench.cell.spec import Cell
from prunebench.errors import PrunebenchError
from prunebench.measure.audit import DenseFacts
from prunebench.measure.bandwidth import read_bandwidth
from prunebench.measure.io import generation_io
from prunebench.measure.latency import measure_latency
from prunebench.measure.memory import MemorySampler
from prunebench.measure.perplexity import perplexity
from prunebench.measure.provenance import machine
from prunebench.measure.results import IO, Audit, GenerationIO, Latency, LatencySamples, Memory, Perplexity
from prunebench.model import checkpoint
from prunebench.model.load import LoadedModel

OURS = ("bandwidth", "latency")
"""Phases in which memory holds a buffer of ours, or a dense twin beside the pruned model: no peak of the model's own."""


def run_cell(cell: Cell, *, events: EventWriter, command: str, keep: Path | None = None) -> Record:
    """Run ``cell`` here and now; a failure becomes a failed record, never an exception.

    ``command`` reproduces the cell and goes on the record; ``keep`` is the folder for the pruned model, if it is kept.
    """
    started = _now()
    begun = time.perf_counter()
    with MemorySampler(gpu=cell.device != "cpu" and torch.cuda.is_available()) as sampler:
        phases = Phases(events.phase, events.progress, sampler.phase)
        base: dict[str, Any] = {"id": cell.id, "cell": cell, "started": started}
        try:
            results = _measure(cell, phases, begun, keep)
            memory, timeline = sampler.result()
            results["samples"].memory = timeline
            record = Record(**base, status="ok", finished=_now(), memory=_fair(memory), **results)
            if record.cost is not None:
                record.cost.peak_rss_bytes = _peak(memory, "prune")
        except Exception as error:
            memory, _ = sampler.result()
            record = Record(
                **base,
                status="out-of-memory" if _out_of_memory(error) else "failed",
                finished=_now(),
                error=_error(error, phases.current, command, memory.peak_rss_bytes),
            )
    plugin = f"{cell.method.distribution} {cell.method.version}"
    record.provenance = {**machine(), "command": command, "plugin": plugin, **record.provenance}
    return record


def _measure(cell: Cell, phases: Phases, begun: float, keep: Path | None) -> dict[str, Any]:
    bench = workbench(cell, phases)
    made = make(bench)
    model = made.loaded.model
    if keep is not None:
        with phases.phase("save"):
            checkpoint.save(model, made.loaded.tokenizer, keep, made_by=made.made_by(cell))

    with phases.phase("perplexity"):
        quality = Quality(perplexity=_perplexities(bench, made.loaded))
    speed, samples, generation = _profile(bench, model, pruned=_is_pruned(made.audit, made.dense))
    return {
        "audit": made.audit,
        "quality": quality,
        "speed": speed,
        "io": IO(load=made.load, generation=generation),
        "cost": _cost(cell, phases, made, begun),
        "samples": samples,
        "method_notes": made.notes,
        "recovery_notes": made.recovered.notes,
        "provenance": {**_sources(bench, made), **made.recovered.provenance},
    }


def _perplexities(bench: Workbench, loaded: LoadedModel) -> list[Perplexity]:
    results = []
    for spec in bench.cell.perplexity:
        windows = evaluation_windows(
            spec.corpus,
            spec.split,
            spec.length,
            spec.windows,
            loaded.tokenizer,
            vocabulary(loaded.model),
            bench.corpora,
        )
        results.append(
            perplexity(
                loaded.model,
                windows.tokens,
                corpus=spec.corpus.name,
                split=spec.split,
                bos=windows.bos,
                tokens_sha256=windows.sha256,
                progress=bench.phases.progress,
            )
        )
    return results


def _profile(bench: Workbench, model: Any, *, pruned: bool) -> tuple[Speed, Samples, list[GenerationIO]]:
    """Time every shape; a pruned model's rounds alternate with those of a dense twin in the same process."""
    latencies: list[Latency] = []
    samples: list[LatencySamples] = []
    generation: list[GenerationIO] = []
    if bench.cell.latency:
        prompts = [_prompt(model, spec.batch_size, spec.prompt) for spec in bench.cell.latency]
        with bench.phases.phase("generate"):  # the pruned model alone: what generation needs in memory
            for spec, prompt in zip(bench.cell.latency, prompts, strict=True):
                once = spec.model_copy(update={"min_rounds": 1, "min_time_s": 0.0})
                measure_latency(model, prompt, once)
        with bench.phases.phase("bandwidth"):
            bandwidth, source = read_bandwidth(bench.device)
        with bench.phases.phase("latency"):
            twin = bench.load().model if pruned else None
            for number, (spec, prompt) in enumerate(zip(bench.cell.latency, prompts, strict=True)):
                latency, raw = measure_latency(model, prompt, spec, dense=twin)
                latencies.append(latency)
                samples.append(raw)
                generation.append(generation_io(model, latency, bandwidth, source))
                bench.phases.progress(number + 1, len(prompts))
    return Speed(latency=latencies), Samples(latency=samples, memory=None), generation


def _is_pruned(audited: Audit, dense: DenseFacts) -> bool:
    """Whether the method changed anything that could change the speed."""
    return audited.zeros != dense.zeros or audited.parameters != dense.parameters


def _sources(bench: Workbench, made: Made) -> dict[str, Any]:
    """Where the method was published, and which commit a Hub model turned out to be."""
    sources: dict[str, Any] = {}
    if made.reference is not None:
        sources["reference"] = asdict(made.reference)
    if bench.cell.model.kind == "hub":
        sources["model_revision"] = bench.folder.name
    return sources


def _cost(cell: Cell, phases: Phases, made: Made, begun: float) -> Cost:
    return Cost(
        prune_s=phases.seconds("prune"),
        calibration_tokens=0 if cell.calibration is None else cell.calibration.tokens,
        calibration_sha256=None if made.calibration is None else made.calibration.sha256,
        peak_rss_bytes=None,
        **made.recovered.cost(phases),
        total_s=time.perf_counter() - begun,
        phases=phases.times,
    )


def _fair(memory: Memory) -> Memory:
    """Peaks of the cell without the phases that need memory for the measuring itself."""
    peaks = [entry.peak_rss_bytes for entry in memory.phases if entry.phase not in OURS]
    known = [peak for peak in peaks if peak is not None]
    return memory.model_copy(update={"peak_rss_bytes": max(known)}) if known else memory


def _peak(memory: Memory, phase: str) -> int | None:
    return next((entry.peak_rss_bytes for entry in memory.phases if entry.phase == phase), None)


def _prompt(model: Any, batch: int, length: int) -> torch.Tensor:
    """Fixed prompt ids, int64 [batch, length]: the same for every cell of a model, whatever its seed."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary(model), (batch, length), generator=generator)
    return ids.to(model.device)


def _error(error: Exception, phase: str, command: str, peak: int | None) -> Error:
    return Error(
        phase=phase,
        type=type(error).__name__,
        message=error.message if isinstance(error, PrunebenchError) else str(error) or type(error).__name__,
        hint=error.hint if isinstance(error, PrunebenchError) else None,
        log_tail="".join(traceback.format_exception(error))[-8000:],
        command=command,
        peak_rss_bytes=peak,
    )


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
