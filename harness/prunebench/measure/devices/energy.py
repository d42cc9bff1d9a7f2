"""Energy: NVML's counter or power of the GPU, RAPL on a CPU; else "not available" and why, never an estimate.

A figure covers the whole device, whoever used it, and of a machine only that device: no host CPU beside a GPU, no
DRAM beside a CPU package, no losses of the power supply. The counters refresh every 1 to 100 ms, so that a stretch
should last a second or more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from prunebench.experiment.measures import LatencySpec
from prunebench.measure.devices import powercap
from prunebench.measure.devices.gpu import Gpu
from prunebench.measure.devices.gpu_lookup import torch_gpu
from prunebench.measure.devices.nvml import Nvml
from prunebench.record.devices import Energy, EnergyResult

LEAST_S = 1.0
POWER_EVERY_S = 0.02


class _Source(Protocol):
    name: str

    def start(self) -> None: ...

    def stop(self) -> float | None:
        """Joules since `start`; None where the device stopped answering."""

    def close(self) -> None: ...


class EnergyMeter:
    """Reads the energy that ``device`` ('cpu', 'cuda', 'cuda:0') takes between `start` and `stop`.

    ``source`` names the counter; None where there is none, and ``reason`` says why. As a context it closes the counter.
    The GPU is the first one that CUDA_VISIBLE_DEVICES leaves.
    """

    def __init__(self, device: str = "cpu", *, powercap_root: Path = powercap.POWERCAP) -> None:
        self.reason: str | None = None
        self._source: _Source | None = None
        self._started = 0.0
        if device.startswith("cuda"):
            self._source, self.reason = _gpu_source(device)
        else:
            domains, self.reason = powercap.packages(powercap_root)
            self._source = _Rapl(domains) if domains else None

    @property
    def source(self) -> str | None:
        return None if self._source is None else self._source.name

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._source is not None:
            self._source.close()

    def start(self) -> None:
        """Begin a stretch; what is still queued on a GPU should be done before."""
        self._started = time.perf_counter()
        if self._source is not None:
            self._source.start()

    def stop(self) -> Energy | None:
        """End it. None where there is no source, or it stopped answering: then ``reason`` says so from now on."""
        if self._source is None:
            return None
        joules = self._source.stop()
        seconds = time.perf_counter() - self._started
        if joules is None:
            self.reason = f"{self._source.name}: it stopped answering"
            return None
        return Energy(joules=joules, seconds=seconds, source=self._source.name)


def measure_energy(
    prompt_round: Callable[[], int],
    generate_round: Callable[[], int],
    *,
    device: str = "cpu",
    spec: LatencySpec | None = None,
    prompts_in_generation: bool = False,
    synchronise: Callable[[], None] | None = None,
    least_s: float = LEAST_S,
    meter: EnergyMeter | None = None,
) -> EnergyResult:
    """Run rounds of each phase for at least ``least_s`` seconds and read the energy around them, then that of waiting.

    ``prompt_round`` runs the prompt phase once and gives the number of its sequences; ``generate_round`` gives the
    number of tokens that it generated. Where ``prompts_in_generation``, it runs the prompt phase first, once, and the
    joules of a prompt round are taken off. Both end with what they queued done, or ``synchronise`` sees to it. Without
    a counter nothing runs.
    """
    shape = {} if spec is None else spec.model_dump(include={"prompt", "new_tokens", "batch_size"})
    with meter or EnergyMeter(device) as open_meter:
        if open_meter.source is None:
            return EnergyResult(**shape, reason=open_meter.reason)
        wait = synchronise or _nothing
        idle = _idle(open_meter, wait, least_s)
        prompt, prompt_rounds, prompts = _loop(open_meter, prompt_round, wait, least_s)
        generation, rounds, tokens = _loop(open_meter, generate_round, wait, least_s)
        per_token = None
        if generation is not None and tokens and (prompt is not None or not prompts_in_generation):
            before = (
                rounds * prompt.joules / prompt_rounds if prompt and prompts_in_generation else 0.0
            )
            per_token = max(0.0, generation.joules - before) / tokens or None
        return EnergyResult(
            **shape,
            joules_per_prompt=prompt.joules / prompts if prompt and prompts else None,
            joules_per_token=per_token,
            prompt_w=prompt.mean_w if prompt else None,
            generation_w=generation.mean_w if generation else None,
            idle_w=idle.mean_w if idle else None,
            prompt_s=prompt.seconds if prompt else None,
            generation_s=generation.seconds if generation else None,
            source=open_meter.source,
            reason=open_meter.reason,
        )


def _loop(
    meter: EnergyMeter, once: Callable[[], int], synchronise: Callable[[], None], least_s: float
) -> tuple[Energy | None, int, int]:
    """Energy of the rounds, how many they were, and the sum of what they gave; one round before is not counted."""
    once()
    synchronise()
    meter.start()
    begun = time.perf_counter()
    rounds = total = 0
    while not rounds or time.perf_counter() - begun < least_s:
        total += once()
        rounds += 1
        synchronise()
    return meter.stop(), rounds, total


def _idle(meter: EnergyMeter, synchronise: Callable[[], None], seconds: float) -> Energy | None:
    synchronise()
    meter.start()
    time.sleep(seconds)
    return meter.stop()


def _gpu_source(device: str) -> tuple[_Source | None, str | None]:
    nvml = Nvml()
    gpu = torch_gpu(nvml, device)
    if gpu is None:
        reason = f"NVML: {nvml.reason or nvml.lost or 'it does not show the GPU in use'}"
    elif gpu.mig:
        reason = "NVML counts the energy of a whole GPU, not of a MIG instance"
    elif gpu.energy_j() is not None:
        return _Counter(gpu), None
    elif gpu.power_w() is not None:
        return _Power(gpu), None
    else:
        reason = (
            f"NVML: this GPU tells neither energy nor power{f' ({nvml.lost})' if nvml.lost else ''}"
        )
    nvml.close()
    return None, reason


class _Counter:
    """The GPU's own energy counter."""

    name = "NVML total energy counter, whole GPU"

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._before: float | None = None

    def start(self) -> None:
        self._before = self._gpu.energy_j()

    def stop(self) -> float | None:
        after = self._gpu.energy_j()
        # a counter that goes back was reset with the driver
        return (
            None
            if after is None or self._before is None or after < self._before
            else after - self._before
        )

    def close(self) -> None:
        self._gpu.nvml.close()


class _Power:
    """The integral of the power that NVML tells, by the trapezoidal rule."""

    name = f"NVML power every {POWER_EVERY_S * 1000:g} ms, trapezoidal rule, whole GPU (each a mean of up to a second)"

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._samples: list[tuple[float, float | None]] = []
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._samples, self._ended = [self._sample()], threading.Event()
        self._thread = threading.Thread(target=self._run, args=(self._ended,), daemon=True)
        self._thread.start()

    def stop(self) -> float | None:
        self._end()
        samples = [*self._samples, self._sample()]
        watts = [(time, value) for time, value in samples if value is not None]
        if len(watts) < len(samples):
            return None
        return sum(
            (later - now) * (first + second) / 2
            for (now, first), (later, second) in pairwise(watts)
        )

    def close(self) -> None:
        self._end()
        self._gpu.nvml.close()

    def _run(self, ended: threading.Event) -> None:
        while not ended.wait(POWER_EVERY_S):
            self._samples.append(self._sample())

    def _sample(self) -> tuple[float, float | None]:
        return time.perf_counter(), self._gpu.power_w()

    def _end(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None


class _Rapl:
    """The counters of all CPU packages."""

    def __init__(self, domains: list[powercap.Domain]) -> None:
        self.name = (
            f"RAPL, {len(domains)} CPU package{'s' if len(domains) > 1 else ''}, without DRAM"
        )
        self._domains = domains
        self._before: list[int] = []

    def start(self) -> None:
        self._before = self._read() or []

    def stop(self) -> float | None:
        after = self._read()
        return (
            powercap.joules(self._domains, self._before, after) if after and self._before else None
        )

    def close(self) -> None:
        """Files are not held open."""

    def _read(self) -> list[int] | None:
        try:
            return [domain.read() for domain in self._domains]
        except (OSError, ValueError):
            return None


def _nothing() -> None:
    """The CPU has finished when a call returns."""
