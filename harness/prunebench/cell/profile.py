"""What a model costs to run: latency at every shape, the I/O floor, the breakdown, energy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
from torch import Tensor

from prunebench.cell.phases import Phases
from prunebench.experiment.measures import LatencySpec
from prunebench.measure.devices.disturbance import DisturbedError
from prunebench.measure.devices.dram_traffic import DramMeter
from prunebench.measure.devices.energy import measure_energy
from prunebench.measure.speed import sparse24
from prunebench.measure.speed.bandwidth import read_bandwidth
from prunebench.measure.speed.breakdown import breakdown
from prunebench.measure.speed.execution import Eager, decoder
from prunebench.measure.speed.io import generation_io
from prunebench.measure.speed.latency import measure_latency
from prunebench.measure.speed.rounds import one_round
from prunebench.measure.speed.weight_pages import put_side_by_side
from prunebench.model.checkpoint import memory_bytes
from prunebench.model.placement import input_device, is_dispatched
from prunebench.model.positions import check_positions
from prunebench.record.audit import Audit
from prunebench.record.devices import DramTraffic, EnergyResult
from prunebench.record.io import GenerationIO
from prunebench.record.speed import Breakdown, Latency, LatencySamples

DISPATCHED = "the model is on several devices: the dense one is not timed between its rounds"
# The dense model is loaded beside the pruned one if this many times its bytes are free.
SPARE = 1.25


@dataclass
class Profile:
    """The lists have one entry per shape; breakdown and energy are of the first shape."""

    latency: list[Latency] = field(default_factory=list)
    samples: list[LatencySamples] = field(default_factory=list)
    generation: list[GenerationIO] = field(default_factory=list)
    generation_reason: str | None = None
    """Why there is no I/O floor, if the bandwidth could not be measured."""
    breakdown: Breakdown | None = None
    breakdown_reason: str | None = None
    energy: EnergyResult | None = None
    dram: DramTraffic | None = None


def profile(
    model: Any,
    shapes: Sequence[LatencySpec],
    vocabulary: int,
    phases: Phases,
    *,
    audited: Audit,
    load_dense: Callable[[], Any] | None = None,
) -> Profile:
    """Time ``model`` at every shape.

    ``load_dense`` loads the dense model of a pruned one. If both fit in memory, their rounds
    alternate; otherwise `Latency.unpaired` gives the reason. A model that is dispatched to several
    devices has no I/O floor, no breakdown and no dense rounds.

    A model whose zeros follow 2:4 is timed again with the kernels of the sparse tensor cores, if
    the GPU has them; that converts the model in place.
    """
    if not shapes:
        return Profile()
    # A phase of its own, so that memory is given out as it is for timed models.
    with phases.phase("weights"):
        put_side_by_side(model)
    dispatched = is_dispatched(model)
    device = input_device(model)
    prompts = [prompt_ids(vocabulary, shape.batch_size, shape.prompt, device) for shape in shapes]
    timed = _Timed(model, list(zip(shapes, prompts, strict=True)))
    found = timed.found
    # Without a dense model or a buffer in memory: this phase's peak is what generation needs.
    with phases.phase("generate"):
        if not dispatched:
            try:
                found.breakdown = breakdown(model, prompts[0], shapes[0].new_tokens, rounds=2)
            except DisturbedError as reason:
                found.breakdown_reason = str(reason)
        # The breakdown has already run the first shape.
        for shape, prompt in timed.shapes[0 if dispatched else 1 :]:
            generate_once(model, prompt, shape.new_tokens)
    with phases.phase("bandwidth"):
        try:
            timed.bandwidth = None if dispatched else read_bandwidth(device)
        except DisturbedError as reason:
            found.generation_reason = f"memory bandwidth: {reason}"
    with phases.phase("latency"):
        unpaired = None
        if load_dense is not None:
            unpaired = DISPATCHED if dispatched else too_large(audited, model)
            timed.dense = None if unpaired else load_dense()
        for number in range(len(shapes)):
            timed.measure(number).unpaired = unpaired
            phases.progress(number + 1, len(shapes))
    with phases.phase("energy"):
        found.energy, found.dram = _energy(model, prompts[0], shapes[0], found.latency[0].execution)
    if not dispatched and sparse24.applies(audited) and sparse24.unsupported(model) is None:
        with phases.phase("2:4 kernels"):
            _time_sparse_kernels(timed)
    return found


@dataclass
class _Timed:
    """What timing one shape needs, and the profile that grows with each."""

    model: Any
    shapes: list[tuple[LatencySpec, Tensor]]
    """Each shape with its prompt, int64 [batch, length]."""
    dense: Any = None
    bandwidth: tuple[float, str] | None = None
    """Bytes per second and their source; None if a token's bytes come from several devices."""
    found: Profile = field(default_factory=Profile)

    def measure(self, number: int) -> Latency:
        """Time the shape ``number`` and add it to the profile."""
        shape, prompt = self.shapes[number]
        latency, samples = measure_latency(self.model, prompt, shape, dense=self.dense)
        self.found.latency.append(latency)
        self.found.samples.append(samples)
        if self.bandwidth is not None:
            self.found.generation.append(generation_io(self.model, latency, *self.bandwidth))
        return latency


def _time_sparse_kernels(timed: _Timed) -> None:
    converted, linears = sparse24.convert(timed.model)
    for number in range(len(timed.shapes)):
        latency = timed.measure(number)
        latency.weights = sparse24.LABEL
        if converted < linears:
            latency.execution_notes.append(
                f"{converted} of {linears} matrices: the others' sizes do not fit"
            )


def prompt_ids(vocabulary: int, batch: int, length: int, device: torch.device | str) -> Tensor:
    """Random prompt ids, int64 [batch, length]; the same for every cell, whatever its seed."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocabulary, (batch, length), generator=generator).to(device)


@torch.inference_mode()
def generate_once(model: Any, prompt: Tensor, new_tokens: int) -> None:
    """One eager round."""
    check_positions(model, prompt.shape[1] + new_tokens, "the latency shape")
    one_round(Eager(model), prompt, new_tokens)


def too_large(audited: Audit, model: Any) -> str | None:
    """Why the dense model does not fit in memory beside ``model``; None if it does."""
    if model.device.type == "cuda":
        # What torch's allocator has reserved but not allocated is free for the dense model too.
        free = (
            torch.cuda.mem_get_info(model.device)[0]
            + torch.cuda.memory_reserved()
            - torch.cuda.memory_allocated()
        )
    else:
        free = psutil.virtual_memory().available
    needed = memory_bytes(model) * audited.parameters_dense / max(1, audited.parameters)
    if needed * SPARE <= free:
        return None
    return (
        f"the dense model takes {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free: "
        "not timed between its rounds"
    )


@torch.inference_mode()
def _energy(
    model: Any, prompt: Tensor, shape: LatencySpec, form: Any
) -> tuple[EnergyResult, DramTraffic | None]:
    """Energy of both phases in the execution ``form`` that was timed, and the DRAM traffic.

    DRAM traffic is of the generation phase on one GPU.
    """
    cuda = input_device(model).type == "cuda"
    device = str(input_device(model)) if cuda else "cpu"
    runs = decoder(model, form, shape.batch_size, shape.prompt + shape.new_tokens)
    # The prompt phase runs eagerly in every form.
    eager = Eager(model)

    def prompt_round() -> int:
        eager.prompt(prompt)
        return shape.batch_size

    def generate_round() -> int:
        one_round(runs, prompt, shape.new_tokens)
        # The first token comes from the prompt phase.
        return shape.batch_size * (shape.new_tokens - 1)

    energy = measure_energy(
        prompt_round, generate_round, device=device, spec=shape, prompts_in_generation=True
    )
    if not cuda or is_dispatched(model):
        return energy, None
    tokens = runs.prompt(prompt)
    with DramMeter(device) as meter:
        for _ in range(shape.new_tokens - 1):
            tokens = runs.step(tokens)
        # Kernels run asynchronously: without this the meter would stop before they do.
        torch.cuda.synchronize()
    return energy, meter.result()
