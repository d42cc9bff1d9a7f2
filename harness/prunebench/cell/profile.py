"""What a model costs to run: latency at every shape with dense rounds in between, the I/O floor, the breakdown, energy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
from torch import Tensor

from prunebench.cell.phases import Phases
from prunebench.experiment.measures import LatencySpec
from prunebench.measure.devices.dram_traffic import DramMeter
from prunebench.measure.devices.energy import measure_energy
from prunebench.measure.speed import sparse24
from prunebench.measure.speed.bandwidth import read_bandwidth
from prunebench.measure.speed.breakdown import breakdown
from prunebench.measure.speed.execution import Eager, decoder
from prunebench.measure.speed.io import generation_io
from prunebench.measure.speed.latency import measure_latency, one_round
from prunebench.model.checkpoint import memory_bytes
from prunebench.model.placement import input_device, is_dispatched
from prunebench.model.positions import check_positions
from prunebench.record.audit import Audit
from prunebench.record.devices import DramTraffic, EnergyResult
from prunebench.record.io import GenerationIO
from prunebench.record.speed import Breakdown, Latency, LatencySamples

OURS = ("metrics", "bandwidth", "latency", "2:4 kernels")
"""Phases in which memory holds a buffer of ours, or a dense twin beside the pruned model: no peak of the model's own."""

SPREAD = "the model is spread over several devices: the dense one is not timed between its rounds"
SPARE = 1.25
"""A twin is loaded beside the model where so many times its bytes are free."""


@dataclass
class Profile:
    """One entry a shape in the lists; the breakdown and the energy are of the first shape."""

    latency: list[Latency] = field(default_factory=list)
    samples: list[LatencySamples] = field(default_factory=list)
    generation: list[GenerationIO] = field(default_factory=list)
    breakdown: Breakdown | None = None
    energy: EnergyResult | None = None
    dram: DramTraffic | None = None


def profile(
    model: Any,
    shapes: Sequence[LatencySpec],
    vocabulary: int,
    phases: Phases,
    *,
    audited: Audit,
    twin: Callable[[], Any] | None = None,
) -> Profile:
    """Time ``model`` at every shape. ``twin`` loads the dense model, for a pruned one.

    A model that is spread over several places has no I/O floor, no breakdown and no twin: not available.

    Dense rounds alternate with the model's own where both fit in memory; where they do not, `Latency.unpaired` says so.
    A model whose zeros follow 2:4 is timed a second time with the sparse tensor cores' kernels, where the GPU has them;
    the model is converted for that, in place.
    """
    found = Profile()
    if not shapes:
        return found
    device, apart = input_device(model), is_dispatched(model)
    prompts = [prompt_ids(vocabulary, shape.batch_size, shape.prompt, device) for shape in shapes]
    with phases.phase("generate"):  # the pruned model alone: what generation needs in memory
        if not apart:
            found.breakdown = breakdown(model, prompts[0], shapes[0].new_tokens, rounds=2)
        for shape, prompt in list(zip(shapes, prompts, strict=True))[0 if apart else 1 :]:
            generate_once(model, prompt, shape.new_tokens)
    with phases.phase("bandwidth"):
        bandwidth = None if apart else read_bandwidth(device)
    dense = None
    with phases.phase("latency"):
        unpaired = None if twin is None else SPREAD if apart else too_large(audited, model)
        dense = None if twin is None or unpaired else twin()
        for number, (shape, prompt) in enumerate(zip(shapes, prompts, strict=True)):
            _add(found, model, prompt, shape, dense, bandwidth)
            found.latency[-1].unpaired = unpaired
            phases.progress(number + 1, len(prompts))
    with phases.phase("energy"):
        found.energy, found.dram = _energy(model, prompts[0], shapes[0], found.latency[0].execution)
    if not apart and sparse24.applies(audited) and sparse24.unsupported(model) is None:
        with phases.phase("2:4 kernels"):
            converted, of = sparse24.convert(model)
            for shape, prompt in zip(shapes, prompts, strict=True):
                _add(found, model, prompt, shape, dense, bandwidth)
                found.latency[-1].weights = sparse24.LABEL
                if converted < of:
                    found.latency[-1].execution_notes.append(
                        f"{converted} of {of} matrices: the others' sizes do not fit"
                    )
    return found


def prompt_ids(vocabulary: int, batch: int, length: int, device: torch.device | str) -> Tensor:
    """Fixed prompt ids, int64 [batch, length]: the same for every cell of a model, whatever its seed."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocabulary, (batch, length), generator=generator).to(device)


@torch.inference_mode()
def generate_once(model: Any, prompt: Tensor, new_tokens: int) -> None:
    """One eager round."""
    check_positions(model, prompt.shape[1] + new_tokens, "the latency shape")
    one_round(Eager(model), prompt, new_tokens)


def too_large(audited: Audit, model: Any) -> str | None:
    """Why the dense model does not fit beside this one; None where it does."""
    if model.device.type == "cuda":
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
    return f"the dense model takes {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free: not timed between its rounds"


def _add(
    found: Profile,
    model: Any,
    prompt: Tensor,
    shape: LatencySpec,
    dense: Any,
    bandwidth: tuple[float, str] | None,
) -> None:
    """``bandwidth``: bytes per second and how that was had; None where a token's bytes come over several ways."""
    latency, raw = measure_latency(model, prompt, shape, dense=dense)
    found.latency.append(latency)
    found.samples.append(raw)
    if bandwidth is not None:
        found.generation.append(generation_io(model, latency, *bandwidth))


@torch.inference_mode()
def _energy(
    model: Any, prompt: Tensor, shape: LatencySpec, form: Any
) -> tuple[EnergyResult, DramTraffic | None]:
    """Joules of both phases, and on a GPU the DRAM traffic of the generation phase, in the form that was timed."""
    cuda = input_device(model).type == "cuda"
    device = str(input_device(model)) if cuda else "cpu"
    runs = decoder(model, form, shape.batch_size, shape.prompt + shape.new_tokens)
    alone = Eager(model)  # the prompt phase is the same in every form

    def prompt_round() -> int:
        alone.prompt(prompt)
        return shape.batch_size

    def generate_round() -> int:
        one_round(runs, prompt, shape.new_tokens)
        return shape.batch_size * (shape.new_tokens - 1)

    energy = measure_energy(
        prompt_round,
        generate_round,
        device=device,
        spec=shape,
        prompts_in_generation=True,
    )
    if not cuda or is_dispatched(model):
        return energy, None
    tokens = runs.prompt(prompt)
    with DramMeter(device) as meter:
        for _ in range(shape.new_tokens - 1):
            tokens = runs.step(tokens)
        torch.cuda.synchronize()
    return energy, meter.result()
