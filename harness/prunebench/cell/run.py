"""One cell from end to end, in the process that is called: load, prune, audit, quality, profile -> Record.

source -> dense model -> calibration windows -> method.prune -> audit -> perplexity -> generation -> record
"""

from __future__ import annotations

import logging
import random
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from prunebench.calibration.windows import Windows, calibration_windows, evaluation_windows
from prunebench.cell.events import EventWriter
from prunebench.cell.phases import Phases
from prunebench.cell.record import Cost, Error, Quality, Record, Samples, Speed
from prunebench.cell.spec import Cell
from prunebench.errors import PrunebenchError
from prunebench.measure.audit import DenseFacts, audit, dense_facts
from prunebench.measure.bandwidth import read_bandwidth
from prunebench.measure.io import disk_read_bytes, generation_io, load_io
from prunebench.measure.latency import measure_latency
from prunebench.measure.memory import MemorySampler
from prunebench.measure.perplexity import perplexity
from prunebench.measure.provenance import machine
from prunebench.measure.results import IO, Audit, GenerationIO, Latency, LatencySamples, Memory, Perplexity
from prunebench.model import checkpoint
from prunebench.model.anatomy import anatomy
from prunebench.model.load import LoadedModel, load, prepare
from prunebench.plugin.context import Context
from prunebench.plugin.host import Registry, load_plugins
from prunebench.plugin.method import pattern_of

if TYPE_CHECKING:
    from prunebench.calibration.corpus import Corpus
    from prunebench.plugin.method import Method

OURS = ("bandwidth", "latency")
"""Phases in which memory holds a buffer of ours, or a dense twin beside the pruned model: no peak of the model's own."""


@dataclass
class _Run:
    """What the phases of one cell share."""

    cell: Cell
    registry: Registry
    phases: Phases
    device: str
    folder: Path = Path()

    @property
    def corpora(self) -> dict[str, Corpus]:
        return {name: entry.value for name, entry in self.registry.corpora.items()}

    def load(self) -> LoadedModel:
        model = self.cell.model
        return load(self.folder, dtype=model.dtype, device=self.device, trust_remote_code=model.trust_remote_code)


def run_cell(cell: Cell, *, events: EventWriter, command: str, keep: Path | None = None) -> Record:
    """Run ``cell`` here and now; a failure becomes a failed record, never an exception.

    ``command`` reproduces the cell and goes on the record; ``keep`` is the folder for the pruned model, if it is kept.
    """
    started = _now()
    begun = time.perf_counter()
    with MemorySampler(gpu=cell.device != "cpu" and torch.cuda.is_available()) as sampler:
        phases = Phases(events, sampler)
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
    if cell.threads is not None:
        torch.set_num_threads(cell.threads)
    _seed(cell.seed)
    registry = load_plugins()
    run = _Run(cell, registry, phases, _device(cell.device))
    method = _method(cell, registry)

    with phases.phase("fetch"):
        run.folder = prepare(cell.model)
    with phases.phase("load"):
        before = disk_read_bytes()
        loaded = run.load()
        after = disk_read_bytes()
    read = None if before is None or after is None else after - before
    load_result = load_io(loaded.weight_bytes, loaded.seconds, read)
    model = loaded.model
    with phases.phase("audit"):
        dense = dense_facts(model)
    calibration, notes, kept = _prune(run, method, loaded)
    with phases.phase("audit"):
        audited = audit(model, dense, kept, _patterns(cell))
    if keep is not None:
        with phases.phase("save"):
            checkpoint.save(model, loaded.tokenizer, keep)

    with phases.phase("perplexity"):
        quality = Quality(perplexity=_perplexities(run, loaded))
    speed, samples, generation = _profile(run, model, pruned=_is_pruned(audited, dense))
    return {
        "audit": audited,
        "quality": quality,
        "speed": speed,
        "io": IO(load=load_result, generation=generation),
        "cost": _cost(cell, phases, calibration, begun),
        "samples": samples,
        "method_notes": notes,
        "provenance": _sources(run, method),
    }


def _prune(run: _Run, method: Method, loaded: LoadedModel) -> tuple[Windows | None, dict[str, Any], list[int]]:
    """Prune the loaded model in place; gives the calibration tokens, the method's notes and the layers that stay."""
    cell, phases = run.cell, run.phases
    windows = None
    if cell.calibration is not None:
        with phases.phase("calibration text"):
            windows = calibration_windows(
                cell.calibration, loaded.tokenizer, _vocabulary(loaded.model), cell.seed, run.corpora
            )
    context = Context(
        calibration=None if windows is None else windows.tokens,
        seed=cell.seed,
        kept_layers=list(range(len(anatomy(loaded.model).layers))),
        progress=phases.progress,
        log=logging.getLogger(f"prunebench.{cell.method.name}"),
    )
    with phases.phase("prune"), torch.no_grad():
        method.prune(loaded.model, context)
    return windows, context.notes, context.kept_layers


def _perplexities(run: _Run, loaded: LoadedModel) -> list[Perplexity]:
    results = []
    for spec in run.cell.perplexity:
        windows = evaluation_windows(
            spec.corpus, spec.split, spec.length, spec.windows, loaded.tokenizer, _vocabulary(loaded.model), run.corpora
        )
        results.append(
            perplexity(
                loaded.model,
                windows.tokens,
                corpus=spec.corpus.name,
                split=spec.split,
                bos=windows.bos,
                tokens_sha256=windows.sha256,
                progress=run.phases.progress,
            )
        )
    return results


def _profile(run: _Run, model: Any, *, pruned: bool) -> tuple[Speed, Samples, list[GenerationIO]]:
    """Time every shape; a pruned model's rounds alternate with those of a dense twin in the same process."""
    latencies: list[Latency] = []
    samples: list[LatencySamples] = []
    generation: list[GenerationIO] = []
    if run.cell.latency:
        prompts = [_prompt(model, spec.batch_size, spec.prompt) for spec in run.cell.latency]
        with run.phases.phase("generate"):  # the pruned model alone: what generation needs in memory
            for spec, prompt in zip(run.cell.latency, prompts, strict=True):
                once = spec.model_copy(update={"min_rounds": 1, "min_time_s": 0.0})
                measure_latency(model, prompt, once)
        with run.phases.phase("bandwidth"):
            bandwidth, source = read_bandwidth(run.device)
        with run.phases.phase("latency"):
            twin = run.load().model if pruned else None
            for number, (spec, prompt) in enumerate(zip(run.cell.latency, prompts, strict=True)):
                latency, raw = measure_latency(model, prompt, spec, dense=twin)
                latencies.append(latency)
                samples.append(raw)
                generation.append(generation_io(model, latency, bandwidth, source))
                run.phases.progress(number + 1, len(prompts))
    return Speed(latency=latencies), Samples(latency=samples, memory=None), generation


def _is_pruned(audited: Audit, dense: DenseFacts) -> bool:
    """Whether the method changed anything that could change the speed."""
    return audited.zeros != dense.zeros or audited.parameters != dense.parameters


def _sources(run: _Run, method: Method) -> dict[str, Any]:
    """Where the method was published, and which commit a Hub model turned out to be."""
    sources: dict[str, Any] = {}
    if method.reference is not None:
        sources["reference"] = asdict(method.reference)
    if run.cell.model.kind == "hub":
        sources["model_revision"] = run.folder.name
    return sources


def _cost(cell: Cell, phases: Phases, calibration: Windows | None, begun: float) -> Cost:
    return Cost(
        prune_s=phases.seconds("prune"),
        calibration_tokens=0 if cell.calibration is None else cell.calibration.tokens,
        calibration_sha256=None if calibration is None else calibration.sha256,
        peak_rss_bytes=None,
        total_s=time.perf_counter() - begun,
        phases=phases.times,
    )


def _method(cell: Cell, registry: Registry) -> Method:
    entry = registry.methods.get(cell.method.name)
    if entry is None:
        problems = [p.message for p in registry.problems if p.distribution == cell.method.distribution]
        raise PrunebenchError(
            f"no plugin registers the method '{cell.method.name}'" + (f": {'; '.join(problems)}" if problems else ""),
            hint=f"install {cell.method.distribution} {cell.method.version}; `prunebench plugins` lists what is there",
        )
    method: Method = entry.value(entry.value.Options.model_validate(cell.method.options))
    return method


def _patterns(cell: Cell) -> Sequence[tuple[int, int]]:
    """2:4 is what hardware can use, so it is always checked; and what was asked for."""
    asked = pattern_of(cell.method.options.get("sparsity", 0.0))
    return sorted({(2, 4), (asked.keep, asked.of)} if asked else {(2, 4)})


def _fair(memory: Memory) -> Memory:
    """Peaks of the cell without the phases that need memory for the measuring itself."""
    peaks = [entry.peak_rss_bytes for entry in memory.phases if entry.phase not in OURS]
    known = [peak for peak in peaks if peak is not None]
    return memory.model_copy(update={"peak_rss_bytes": max(known)}) if known else memory


def _peak(memory: Memory, phase: str) -> int | None:
    return next((entry.peak_rss_bytes for entry in memory.phases if entry.phase == phase), None)


def _vocabulary(model: Any) -> int:
    return int(model.get_input_embeddings().num_embeddings)


def _prompt(model: Any, batch: int, length: int) -> torch.Tensor:
    """Fixed prompt ids, int64 [batch, length]: the same for every cell of a model, whatever its seed."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, _vocabulary(model), (batch, length), generator=generator)
    return ids.to(model.device)


def _device(wanted: str) -> str:
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise PrunebenchError(f"device '{wanted}': torch sees no GPU", hint="set `device: cpu` or `device: auto`")
    return wanted


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - a plugin may draw from the global generator
    random.seed(seed)


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
