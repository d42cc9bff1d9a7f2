"""Profile one unpruned model: how long loading, a prompt and a token take, and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import Field

from prunebench.cell.phases import Phases
from prunebench.cell.profile import profile, prompt_ids
from prunebench.cell.runtimes import Subject, measure_runtimes
from prunebench.cell.setup import set_up, vocabulary_size
from prunebench.experiment.cell import Cell
from prunebench.experiment.measures import Form, LatencySpec
from prunebench.measure.audit import audit, dense_facts
from prunebench.measure.speed.compare_forms import compare_forms
from prunebench.measure.speed.dejavu_claims import Finding, findings
from prunebench.model.dense_indices import DenseIndices
from prunebench.plugin.host import load_chosen_plugins
from prunebench.record.devices import EnergyResult
from prunebench.record.io import GenerationIO, LoadIO
from prunebench.record.runtimes import RuntimeResult
from prunebench.record.speed import Breakdown, FormTime, Latency
from prunebench.schema import Part
from prunebench.suite.load import check_suite
from prunebench.suite.methods import DENSE
from prunebench.suite.plan import plan
from prunebench.suite.source import source_of


class ModelProfile(Part):
    """What `prunebench profile` shows."""

    model: str
    parameters: int
    dtype: str
    device: str
    threads: int
    load: LoadIO
    latency: Latency
    generation: GenerationIO | None
    generation_reason: str | None = None
    breakdown: Breakdown | None
    breakdown_reason: str | None = None
    forms: list[FormTime] = Field(default_factory=list)
    runtimes: list[RuntimeResult] = Field(default_factory=list)
    energy: EnergyResult | None = None
    settings: dict[str, Any] = Field(
        default_factory=dict,
        description="how the model was run, and what its checkpoint says otherwise",
    )
    flags: list[str] = Field(
        default_factory=list, description="what the checkpoint holds and the model does not use"
    )

    @property
    def findings(self) -> list[Finding]:
        """What a published analysis claims of generation, and whether it holds here."""
        return findings(self.breakdown, self.latency, self.generation)


def profile_model(
    model: str,
    shape: LatencySpec,
    *,
    dtype: str = "float32",
    device: str = "auto",
    compiled: bool = False,
    runtimes: Sequence[Any] = (),
    progress: Callable[[str, int, int], None] | None = None,
) -> ModelProfile:
    """Measure ``model`` unpruned at the shape ``shape``, and compare the ways to run it.

    ``model`` is what a suite calls a model. ``compiled`` also times torch.compile, which compiles
    for minutes. ``runtimes`` are engines as a suite's `profile.runtimes` names them. ``progress``
    is called with (phase, done, total). Raises PrunebenchError for anything that the user can mend.
    """
    cell = _cell(model, shape, runtimes, dtype, device)
    phases = Phases() if progress is None else Phases(lambda phase: progress(phase, 0, 0), progress)
    setup = set_up(cell, phases)
    setup.fetch()  # a phase of its own: a download is no part of the time to load
    loaded, load = setup.load_timed()
    facts = dense_facts(loaded.model)
    whole = DenseIndices(list(range(facts.layers)))
    in_runtimes = measure_runtimes(setup, Subject(loaded.model, loaded.tokenizer))
    found = profile(
        loaded.model,
        [shape],
        vocabulary_size(loaded.model),
        phases,
        audited=audit(loaded.model, facts, whole),
    )
    with phases.phase("execution forms"):
        forms = _forms(cell.device, compiled=compiled)
        prompt = prompt_ids(
            vocabulary_size(loaded.model), shape.batch_size, shape.prompt, loaded.model.device
        )
        compared = compare_forms(loaded.model, prompt, shape.new_tokens, forms)
    return ModelProfile(
        model=cell.model.name,
        parameters=facts.parameters,
        dtype=cell.model.dtype,
        device=str(loaded.model.device),
        threads=torch.get_num_threads(),
        load=load,
        latency=found.latency[0],
        generation=next(iter(found.generation), None),
        generation_reason=found.generation_reason,
        breakdown=found.breakdown,
        breakdown_reason=found.breakdown_reason,
        forms=compared,
        runtimes=in_runtimes,
        energy=found.energy,
        settings=loaded.settings,
        flags=setup.flags.found,
    )


def _cell(model: str, shape: LatencySpec, runtimes: Sequence[Any], dtype: str, device: str) -> Cell:
    """The dense cell, checked as that of a suite."""
    registry = load_chosen_plugins()
    data = {
        "name": "profile",
        "models": [{"model": model, "dtype": dtype}],
        "methods": [DENSE],
        # Without runtimes nothing is asked of the shape: `profile_model` times it itself.
        "profile": {"latency": [shape.identity()], "runtimes": list(runtimes)}
        if runtimes
        else None,
        "device": device,
    }
    [cell] = plan(check_suite(source_of(data, "prunebench profile"), registry), registry).cells
    return cell


def _forms(device: str, *, compiled: bool) -> list[Form]:
    forms: list[Form] = ["eager", "static", "lean"]
    # For "auto", the row of a form for another device says why it was not timed.
    if device in {"cpu", "auto"}:
        forms.append("lean-packed")
    if device != "cpu":
        forms.append("cuda-graph")
    if compiled:
        forms.append("compiled")
    return forms
