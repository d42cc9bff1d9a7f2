"""Run one cell from end to end in this process: prune the model, measure it, make the record."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from prunebench.cell.events import EventWriter
from prunebench.cell.failure import failed_record
from prunebench.cell.partial_results import PartialResults
from prunebench.cell.phases import Phases
from prunebench.cell.pipeline import PrunedCell, build_pruned_model
from prunebench.cell.profile import profile
from prunebench.cell.quality import measure_quality
from prunebench.cell.runtimes import Subject, measure_runtimes
from prunebench.cell.setup import CellSetup, set_up, vocabulary_size
from prunebench.cell.unpinned import unpinned
from prunebench.errors import printable_values
from prunebench.experiment.cell import Cell
from prunebench.isolation.heap import (
    give_tensors_pages,
    keep_freed_memory,
    release_freed_memory,
)
from prunebench.isolation.timing_lock import TIMED, TimingLock
from prunebench.measure.devices.cpu_contention import CpuWatch
from prunebench.measure.devices.memory import MemorySampler
from prunebench.measure.devices.memory_peaks import without_phases
from prunebench.measure.devices.provenance import machine
from prunebench.model import checkpoint
from prunebench.model.placement import layers_by_device
from prunebench.record.devices import Contention
from prunebench.record.io import IO
from prunebench.record.memory import NOT_THE_MODEL_ALONE, Memory
from prunebench.record.record import Cost, Record, Samples, utc_now
from prunebench.record.speed import Speed


def run_cell(
    cell: Cell,
    *,
    events: EventWriter,
    command: str,
    keep: Path | None = None,
    partial_results: Path | None = None,
    own_process: bool = False,
) -> Record:
    """Run ``cell`` in this process; a failure becomes a failed record, never an exception.

    ``command`` reproduces the cell and goes on the record. ``keep`` is a folder for the pruned
    model. ``partial_results`` is a file that keeps results until the record is written; those that
    an interrupted run left there are reused. ``own_process``: nothing else computes in this process,
    so its allocator may be set for each phase.
    """
    started, begun = utc_now(), time.perf_counter()
    cpu = CpuWatch()

    # Waiting is a phase for the run, whose time limit does not count it, and for the CPU watch.
    # For memory it belongs to the phase before: nothing is allocated meanwhile.
    def wait(phase: str) -> None:
        events.phase(phase)
        cpu.phase(phase)

    lock = TimingLock.from_environment(wait)
    lock.enter_phase("start")
    with MemorySampler(
        gpu=cell.device != "cpu" and torch.cuda.is_available(),
        device=cell.device if cell.device.startswith("cuda") else "cuda",
    ) as memory:

        def began(phase: str) -> None:
            # What the phase before has freed is no memory of this one.
            release_freed_memory()
            if own_process:
                (give_tensors_pages if phase in TIMED else keep_freed_memory)()
            events.phase(phase)
            memory.phase(phase)
            cpu.phase(phase)

        phases = Phases(began, events.progress, events.say, lock.enter_phase)
        try:
            results = _measure(cell, phases, begun, keep, PartialResults(partial_results))
            release_freed_memory()  # before what the last phase holds is read
            cpu.stop()
            record = _finished_record(cell, started, results, memory)
        except (Exception, SystemExit) as error:
            peak = memory.result()[0].peak_rss_bytes
            record = failed_record(cell, started, error, phases.current, command, peak)
        record.contention = Contention(
            gpu=memory.sharing(), cpu=cpu.result(), cpu_reason=cpu.reason
        )
    plugin = f"{cell.method.distribution} {cell.method.version}"
    record.provenance = printable_values(
        {**machine(), "command": command, "plugin": plugin, **record.provenance}
    )
    return record


def _measure(
    cell: Cell, phases: Phases, begun: float, keep: Path | None, kept: PartialResults
) -> dict[str, Any]:
    """Prune, then measure quality, then speed; returns fields of the record."""
    setup = set_up(cell, phases)
    setup.remember = kept.remember
    setup.training = kept.training
    pruned = build_pruned_model(setup)
    model = pruned.loaded.model
    if keep is not None:
        with phases.phase("save"):
            checkpoint.save(
                model,
                pruned.loaded.tokenizer,
                keep,
                made_by=pruned.made_by(cell),
                kept=pruned.audit.kept,
            )
    quality = measure_quality(setup, pruned, kept)
    runtimes = measure_runtimes(
        setup,
        Subject(
            model,
            pruned.loaded.tokenizer,
            pruned.made_by(cell),
            pruned.audit if pruned.is_changed else None,
        ),
    )
    # Last, because the 2:4 kernels convert the model in place.
    profiled = profile(
        model,
        cell.latency,
        vocabulary_size(model),
        phases,
        audited=pruned.audit,
        load_dense=(lambda: setup.load().model) if pruned.is_changed else None,
    )
    return {
        "audit": pruned.audit,
        "quality": quality,
        "speed": Speed(
            latency=profiled.latency,
            breakdown=profiled.breakdown,
            breakdown_reason=profiled.breakdown_reason,
            dram=profiled.dram,
        ),
        "runtimes": runtimes,
        "energy": profiled.energy,
        "io": IO(
            load=pruned.load,
            generation=profiled.generation,
            generation_reason=profiled.generation_reason,
        ),
        "cost": _cost(phases, pruned, begun),
        "samples": Samples(latency=profiled.samples, memory=None),
        "method_notes": pruned.notes,
        "recovery_notes": pruned.recovery.notes,
        "flags": list(setup.flags.found),
        "provenance": _provenance(setup, pruned, kept),
    }


def _cost(phases: Phases, pruned: PrunedCell, begun: float) -> Cost:
    return Cost(
        prune_s=phases.seconds("prune"),
        calibration_tokens=0 if pruned.calibration is None else pruned.calibration.tokens.numel(),
        calibration_sha256=None if pruned.calibration is None else pruned.calibration.sha256,
        peak_rss_bytes=None,
        **pruned.recovery.cost(phases),
        total_s=time.perf_counter() - begun,
        phases=phases.times,
    )


def _provenance(setup: CellSetup, pruned: PrunedCell, kept: PartialResults) -> dict[str, Any]:
    """Who published the method, which model it was, how and where it ran, and what was reused."""
    found: dict[str, Any] = {}
    if pruned.reference is not None:
        found["reference"] = asdict(pruned.reference)
    if setup.cell.model.placement is not None:
        found["placement"] = layers_by_device(pruned.loaded.model)
    if setup.cell.model.kind == "hub":
        # The Hub's cache names a model's folder by its commit.
        found["model_revision"] = setup.folder.name
    moving = unpinned(setup.cell, setup.corpora)
    if commits := {f"{one.what} at {one.revision}": one.commit for one in moving if one.commit}:
        found["unpinned"] = commits
    found["settings"] = pruned.loaded.settings
    found |= pruned.recovery.provenance
    if kept.reused:
        found["taken_over_from_an_interrupted_run"] = list(kept.reused)
    return found


def _finished_record(
    cell: Cell, started: str, results: dict[str, Any], sampler: MemorySampler
) -> Record:
    """The record of a cell that ran to its end, with what the sampler saw of its memory."""
    memory, timeline = sampler.result()
    record = Record(
        id=cell.id,
        cell=cell,
        status="ok",
        started=started,
        finished=utc_now(),
        memory=without_phases(memory, NOT_THE_MODEL_ALONE),
        **results,
    )
    assert record.samples is not None
    assert record.cost is not None
    assert record.io is not None
    record.samples.memory = timeline
    record.cost.peak_rss_bytes = _peak(memory, "prune")
    record.cost.peak_gpu_bytes, record.cost.peak_gpu_source = _gpu_peak(memory, "prune")
    record.io.load.pcie = sampler.pcie()
    return record


def _peak(memory: Memory, phase: str) -> int | None:
    return next((entry.peak_rss_bytes for entry in memory.phases if entry.phase == phase), None)


def _gpu_peak(memory: Memory, phase: str) -> tuple[int | None, str | None]:
    """The most bytes on the GPU during ``phase``, and who counted them."""
    gpu = next((entry.gpu for entry in memory.phases if entry.phase == phase), None)
    if gpu is None:
        return None, None
    # From the closest to the method's own need to the least specific.
    sources = (
        (gpu.allocated_bytes, "torch's allocator, bytes allocated"),
        (gpu.nvml_process_bytes, "NVML, this process"),
        (gpu.nvml_device_bytes, "NVML, the whole device, others included"),
    )
    return next(((value, name) for value, name in sources if value is not None), (None, None))
