"""Energy: NVML's energy counter or power for a GPU, RAPL for a CPU.

If neither can be read, the result is "not available" with the reason; nothing is estimated.
A figure covers the whole device, including what other processes used, and only that device: no
host CPU beside a GPU, no DRAM beside a CPU package, no losses of the power supply. The counters
refresh every 1 to 100 ms, so a measured stretch should last at least a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from prunebench.experiment.measures import LatencySpec
from prunebench.measure.devices import powercap
from prunebench.measure.devices.disturbance import DisturbedError, Watch, undisturbed
from prunebench.measure.devices.energy_sources import EnergySource, gpu_source, rapl_source
from prunebench.measure.devices.watch import watch_of
from prunebench.measure.synchronise import synchroniser
from prunebench.record.devices import Energy, EnergyResult

LEAST_S = 1.0


class EnergyMeter:
    """Read the energy that ``device`` ('cpu', 'cuda', 'cuda:0') uses between `start` and `stop`.

    ``source`` names the counter. If there is none it is None, and ``reason`` says why. Use the
    meter as a context to close the counter. GPUs are numbered as CUDA_VISIBLE_DEVICES says.
    """

    def __init__(self, device: str = "cpu", *, powercap_root: Path = powercap.POWERCAP) -> None:
        self.reason: str | None = None
        self._source: EnergySource | None = None
        self._started = 0.0
        if device.startswith("cuda"):
            self._source, self.reason = gpu_source(device)
        else:
            self._source, self.reason = rapl_source(powercap_root)

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
        """Begin a stretch. Finish the work queued on a GPU before."""
        self._started = time.perf_counter()
        if self._source is not None:
            self._source.start()

    def stop(self) -> Energy | None:
        """End the stretch.

        None if there is no source or it stopped answering; ``reason`` then says so.
        """
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
    least_s: float = LEAST_S,
    meter: EnergyMeter | None = None,
    watch: Watch | None = None,
) -> EnergyResult:
    """Measure the energy of idling and of rounds of each phase, each for at least ``least_s`` s.

    ``prompt_round`` runs the prompt phase once and returns its number of sequences.
    ``generate_round`` returns the number of tokens that it generated. If ``prompts_in_generation``,
    it also runs the prompt phase once, and the joules of a prompt round are subtracted. Without a
    counter nothing runs. A stretch that something else disturbed is measured again, up to three
    times; then there are no figures, and `reason` says why. ``watch`` is over ``device`` by
    default.
    """
    shape = {} if spec is None else spec.model_dump(include={"prompt", "new_tokens", "batch_size"})
    with meter or EnergyMeter(device) as open_meter:
        if open_meter.source is None:
            return EnergyResult(**shape, reason=open_meter.reason)
        wait = synchroniser(device)
        watch = watch or watch_of(device)
        try:
            idle = undisturbed(lambda: _idle(open_meter, wait, least_s), watch)
            prompt, prompt_rounds, prompts = undisturbed(
                lambda: _loop(open_meter, prompt_round, wait, least_s), watch
            )
            generation, rounds, tokens = undisturbed(
                lambda: _loop(open_meter, generate_round, wait, least_s), watch
            )
        except DisturbedError as error:
            return EnergyResult(**shape, reason=str(error))
        per_token = None
        if generation is not None and tokens and (prompt is not None or not prompts_in_generation):
            # E(generation) = E(round) - E(prompt), with the mean energy of a prompt round
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
    meter: EnergyMeter, once: Callable[[], int], wait: Callable[[], None], least_s: float
) -> tuple[Energy | None, int, int]:
    """(energy of the rounds, number of rounds, sum of their results), after one warm-up round."""
    once()
    wait()
    meter.start()
    begun = time.perf_counter()
    rounds = total = 0
    # At least one round, however long it takes. Each one waits for the device, so that no round's
    # energy falls behind the second reading of the counter.
    while not rounds or time.perf_counter() - begun < least_s:
        total += once()
        rounds += 1
        wait()
    return meter.stop(), rounds, total


def _idle(meter: EnergyMeter, wait: Callable[[], None], seconds: float) -> Energy | None:
    wait()
    meter.start()
    time.sleep(seconds)
    return meter.stop()
