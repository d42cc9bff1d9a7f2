"""One cell from end to end, in the process that is called: make the pruned model, quality, profile -> Record."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from prunebench.cell.events import EventWriter
from prunebench.cell.partial_results import Stages
from prunebench.cell.phases import Phases
from prunebench.cell.pipeline import (
    PrunedCell,
    Workbench,
    build_pruned_model,
    vocabulary,
    workbench,
)
from prunebench.cell.profile import OURS, profile
from prunebench.cell.quality import measure_metrics
from prunebench.errors import PrunebenchError
from prunebench.experiment.cell import Cell
from prunebench.isolation.timing_lock import TimingLock
from prunebench.measure.audit import DenseFacts
from prunebench.measure.devices.cpu_contention import CpuWatch
from prunebench.measure.devices.memory import MemorySampler, without
from prunebench.measure.devices.provenance import machine
from prunebench.measure.quality.perplexity import perplexity
from prunebench.measure.quality.tasks import evaluate_tasks
from prunebench.model import checkpoint
from prunebench.model.load import LoadedModel
from prunebench.model.placement import dispatch, layers_by_device
from prunebench.record.audit import Audit
from prunebench.record.devices import Contention
from prunebench.record.io import IO
from prunebench.record.memory import Memory
from prunebench.record.quality import Perplexity, Quality, TaskResult
from prunebench.record.record import Cost, Error, Record, Samples
from prunebench.record.speed import Speed
from prunebench.text.windows import evaluation_windows, with_length


def run_cell(
    cell: Cell,
    *,
    events: EventWriter,
    command: str,
    keep: Path | None = None,
    stages: Path | None = None,
) -> Record:
    """Run ``cell`` here and now; a failure becomes a failed record, never an exception.

    ``command`` reproduces the cell and goes on the record; ``keep`` is the folder for the pruned model, if it is kept;
    ``stages`` is the file where results stay until the record is written, and from which those of a crash are taken.
    """
    started = _now()
    begun = time.perf_counter()
    watch = CpuWatch()

    def waiting(phase: str) -> None:
        events.phase(phase)
        watch.phase(phase)

    lock = TimingLock.from_environment(waiting)
    lock.enter_phase("start")
    device = cell.device if cell.device.startswith("cuda") else "cuda"
    with MemorySampler(
        gpu=cell.device != "cpu" and torch.cuda.is_available(), device=device
    ) as sampler:

        def tag(phase: str) -> None:
            sampler.phase(phase)
            watch.phase(phase)

        phases = Phases(events.phase, events.progress, tag, lock.enter_phase)
        base: dict[str, Any] = {"id": cell.id, "cell": cell, "started": started}
        try:
            results = _measure(cell, phases, begun, keep, Stages(stages))
            watch.stop()
            memory, timeline = sampler.result()
            results["samples"].memory = timeline
            record = Record(
                **base, status="ok", finished=_now(), memory=without(memory, OURS), **results
            )
            if record.cost is not None:
                record.cost.peak_rss_bytes = _peak(memory, "prune")
                record.cost.peak_gpu_bytes, record.cost.peak_gpu_source = _gpu_peak(memory, "prune")
            if record.io is not None:
                record.io.load.pcie = sampler.pcie()
        except (Exception, SystemExit) as error:
            memory, _ = sampler.result()
            record = Record(
                **base,
                status="out-of-memory" if _out_of_memory(error) else "failed",
                finished=_now(),
                error=_error(error, phases.current, command, memory.peak_rss_bytes),
            )
        record.contention = Contention(
            gpu=sampler.sharing(), cpu=watch.result(), cpu_reason=watch.reason
        )
    plugin = f"{cell.method.distribution} {cell.method.version}"
    record.provenance = {**machine(), "command": command, "plugin": plugin, **record.provenance}
    return record


def _measure(
    cell: Cell, phases: Phases, begun: float, keep: Path | None, stages: Stages
) -> dict[str, Any]:
    bench = workbench(cell, phases)
    made = build_pruned_model(bench)
    model = made.loaded.model
    if keep is not None:
        with phases.phase("save"):
            checkpoint.save(model, made.loaded.tokenizer, keep, made_by=made.made_by(cell))

    with phases.phase("perplexity"):
        stages.begin(model)
        if cell.model.placement is not None:
            dispatch(model, cell.model.placement, bench.device)
        quality = Quality(perplexity=_perplexities(bench, made.loaded, stages))
    if cell.tasks:
        with phases.phase("tasks"):
            quality.tasks = _tasks(bench, made.loaded, stages)
    if cell.metrics:
        with phases.phase("metrics"):
            quality.metrics = measure_metrics(
                bench, made, stages, lambda *part: _part(phases.progress, *part)
            )
    profiled = profile(
        model,
        cell.latency,
        vocabulary(model),
        phases,
        audited=made.audit,
        twin=(lambda: bench.load().model) if _is_pruned(made.audit, made.dense) else None,
    )
    return {
        "audit": made.audit,
        "quality": quality,
        "speed": Speed(latency=profiled.latency, breakdown=profiled.breakdown, dram=profiled.dram),
        "energy": profiled.energy,
        "io": IO(load=made.load, generation=profiled.generation),
        "cost": _cost(cell, phases, made, begun),
        "samples": Samples(latency=profiled.samples, memory=None),
        "method_notes": made.notes,
        "recovery_notes": made.recovered.notes,
        "flags": list(bench.flags.found),
        "provenance": {**_sources(bench, made), **made.recovered.provenance, **_reused(stages)},
    }


def _perplexities(bench: Workbench, loaded: LoadedModel, stages: Stages) -> list[Perplexity]:
    results: list[Perplexity] = []
    for number, planned in enumerate(bench.cell.perplexity):
        stage = f"perplexity {number + 1}"
        if known := stages.get(stage, Perplexity):
            results += known
            continue
        spec = with_length(planned, loaded.model)
        windows = evaluation_windows(
            spec, loaded.tokenizer, vocabulary(loaded.model), bench.corpora
        )
        results.append(perplexity(loaded.model, windows, spec, progress=bench.phases.progress))
        stages.put(stage, results[-1:])
    return results


def _tasks(bench: Workbench, loaded: LoadedModel, stages: Stages) -> list[TaskResult]:
    """Each entry by itself, so that it is kept when the next one fails."""
    results: list[TaskResult] = []
    count = len(bench.cell.tasks)
    for number, spec in enumerate(bench.cell.tasks):
        stage = f"tasks {spec.name}, {number + 1}"
        found = stages.get(stage, TaskResult)
        if found is None:
            progress = _part(bench.phases.progress, number, count)
            found = evaluate_tasks(
                loaded.model, loaded.tokenizer, [spec], data=bench.task_data, progress=progress
            )
            stages.put(stage, found)
        results += found
    return results


def _part(
    progress: Callable[[int, int], None], number: int, count: int
) -> Callable[[int, int], None]:
    """Progress within one of ``count`` equal parts, as progress of the whole."""
    return lambda done, total: progress(number * total + done, count * total)


def _reused(stages: Stages) -> dict[str, Any]:
    return {"taken_over_from_an_interrupted_run": list(stages.reused)} if stages.reused else {}


def _is_pruned(audited: Audit, dense: DenseFacts) -> bool:
    """Whether the method changed anything that could change the speed."""
    return audited.zeros != dense.zeros or audited.parameters != dense.parameters


def _sources(bench: Workbench, made: PrunedCell) -> dict[str, Any]:
    """Where the method was published, and which commit a Hub model turned out to be."""
    sources: dict[str, Any] = {}
    if made.reference is not None:
        sources["reference"] = asdict(made.reference)
    if bench.cell.model.placement is not None:
        sources["placement"] = layers_by_device(made.loaded.model)
    if bench.cell.model.kind == "hub":
        sources["model_revision"] = bench.folder.name
    return sources


def _cost(cell: Cell, phases: Phases, made: PrunedCell, begun: float) -> Cost:
    return Cost(
        prune_s=phases.seconds("prune"),
        calibration_tokens=0 if cell.calibration is None else cell.calibration.tokens,
        calibration_sha256=None if made.calibration is None else made.calibration.sha256,
        peak_rss_bytes=None,
        **made.recovered.cost(phases),
        total_s=time.perf_counter() - begun,
        phases=phases.times,
    )


def _peak(memory: Memory, phase: str) -> int | None:
    return next((entry.peak_rss_bytes for entry in memory.phases if entry.phase == phase), None)


def _gpu_peak(memory: Memory, phase: str) -> tuple[int | None, str | None]:
    """Bytes on the GPU in the ``phase`` at most, and who counted them: the closest to the method's own need first."""
    gpu = next((entry.gpu for entry in memory.phases if entry.phase == phase), None)
    if gpu is None:
        return None, None
    sources = (
        (gpu.allocated_bytes, "torch's allocator, bytes allocated"),
        (gpu.nvml_process_bytes, "NVML, this process"),
        (gpu.nvml_device_bytes, "NVML, the whole device, others included"),
    )
    return next(((value, name) for value, name in sources if value is not None), (None, None))


def _error(error: BaseException, phase: str, command: str, peak: int | None) -> Error:
    return Error(
        phase=phase,
        type=type(error).__name__,
        message=error.message
        if isinstance(error, PrunebenchError)
        else str(error) or type(error).__name__,
        hint=error.hint if isinstance(error, PrunebenchError) else None,
        log_tail="".join(traceback.format_exception(error))[-8000:],
        command=command,
        peak_rss_bytes=peak,
    )


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(
        error, MemoryError | torch.OutOfMemoryError
    ) or "can't allocate memory" in str(error)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
