"""One model as it stands: how long loading, a prompt and a token take, where that goes, and in which execution form."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from pydantic import Field

from prunebench.cell.phases import Phases
from prunebench.cell.pipeline import vocabulary, workbench
from prunebench.cell.profile import profile, prompt_ids
from prunebench.experiment.cell import Cell
from prunebench.experiment.measures import Form, LatencySpec
from prunebench.measure.audit import audit, dense_facts
from prunebench.measure.speed.compare_forms import compare_forms
from prunebench.measure.speed.dejavu_claims import Finding, findings
from prunebench.measure.speed.io import disk_read_bytes, load_io
from prunebench.model.anatomy import anatomy
from prunebench.model.fetch import fetch_checkpoint
from prunebench.record.devices import EnergyResult
from prunebench.record.io import GenerationIO, LoadIO
from prunebench.record.speed import Breakdown, FormTime, Latency
from prunebench.schema import Part


class ModelProfile(Part):
    """What `prunebench profile` shows."""

    model: str
    parameters: int
    dtype: str
    device: str
    threads: int
    load: LoadIO
    latency: Latency
    generation: GenerationIO
    breakdown: Breakdown
    forms: list[FormTime] = Field(default_factory=list)
    energy: EnergyResult | None = None

    @property
    def findings(self) -> list[Finding]:
        """What a published analysis claims of generation, and whether it holds here."""
        return findings(self.breakdown, self.latency, self.generation)


def profile_model(
    cell: Cell,
    shape: LatencySpec,
    forms: Sequence[Form] = (),
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> ModelProfile:
    """Profile the model of ``cell`` as it is, without its method. Raises PrunebenchError for what a user can mend."""
    phases = Phases() if progress is None else Phases(lambda phase: progress(phase, 0, 0), progress)
    bench = workbench(cell, phases)
    with phases.phase("fetch"):
        bench.folder = fetch_checkpoint(cell.model)
    with phases.phase("load"):
        before = disk_read_bytes()
        loaded = bench.load()
        after = disk_read_bytes()
    model = loaded.model
    facts = dense_facts(model)
    found = profile(
        model,
        [shape],
        vocabulary(model),
        phases,
        audited=audit(model, facts, list(range(len(anatomy(model).layers)))),
    )
    assert found.breakdown is not None
    compared = []
    if forms:
        with phases.phase("execution forms"):
            prompt = prompt_ids(vocabulary(model), shape.batch_size, shape.prompt, model.device)
            compared = compare_forms(model, prompt, shape.new_tokens, forms)
    return ModelProfile(
        model=cell.model.name,
        parameters=facts.parameters,
        dtype=cell.model.dtype,
        device=str(model.device),
        threads=torch.get_num_threads(),
        load=load_io(
            loaded.weight_bytes,
            loaded.seconds,
            None if before is None or after is None else after - before,
        ),
        latency=found.latency[0],
        generation=found.generation[0],
        breakdown=found.breakdown,
        forms=compared,
        energy=found.energy,
    )
