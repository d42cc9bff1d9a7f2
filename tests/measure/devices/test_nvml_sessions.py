"""What each kind of machine gives, from replayed sessions of NVML."""

from __future__ import annotations

import json
import os
import sys
from collections import deque
from types import SimpleNamespace

import pytest

from nvml_replay import FOLDER, Recorder, read, real, replay
from prunebench.measure.devices.dram_traffic import DramMeter
from prunebench.measure.devices.energy import EnergyMeter
from prunebench.measure.devices.gpu import own_bytes
from prunebench.measure.devices.gpu_log import pcie_traffic, read_log, sharing
from prunebench.measure.devices.gpu_lookup import all_gpus, find_gpu, torch_gpu
from prunebench.measure.devices.gpu_watch import GpuReader
from prunebench.measure.devices.memory import TRANSFERS
from prunebench.measure.devices.memory_peaks import Phase, Recording, memory, timeline
from prunebench.measure.devices.nvml import Nvml
from prunebench.measure.devices.timeline import Point

GIB = 1 << 30
SESSIONS = sorted(path.stem for path in FOLDER.glob("*.json"))


def watched(**phases):
    """What the sampler gives for a cell with these phases: seconds by name, one look a second.

    The session must be playing. There is a phase 'start' before the others, with the first look.
    """
    log: deque[str] = deque()
    points, begins, now = [], [Phase("start", 0.0, 100)], 0.0
    with Nvml() as nvml:
        gpu = torch_gpu(nvml, "cuda")
        if gpu is None:
            return _result(begins, 1.0, [], [f"problem {nvml.reason}"])
        reader = GpuReader(gpu, lambda: {os.getpid()}, log, {os.getpid()})
        reader.first(now)
        for name, seconds in {"start": 1, **phases}.items():
            if name != "start":
                begins.append(Phase(name, now, 100))
            for _ in range(seconds):
                reading = reader.look(now + 0.5) if nvml.lost is None else (None, None)
                points.append(Point(now + 0.5, 100, *reading))
                if name == TRANSFERS:
                    reader.transfers(now + 0.6)
                now += 1
        if nvml.lost:
            log.append(f"problem {nvml.lost}")
    return _result(begins, now, points, log)


def _result(begins, end, points, lines):
    log = read_log(lines)
    recording = Recording(begins, Phase("", end, 100), points, 1.0, "test", problems=log.problems)
    spans = [(phase.name, start, stop) for phase, start, stop in recording.spans]
    return SimpleNamespace(
        memory=memory(recording, None),
        timeline=timeline(recording),
        sharing=sharing(log, spans),
        pcie=pcie_traffic(log),
    )


@pytest.mark.parametrize("session", SESSIONS)
def test_a_session_names_its_origin_and_breaks_nothing(play, session):
    assert read(session)["origin"]
    play(session)
    with Nvml() as nvml:
        all_gpus(nvml)
        gpu = torch_gpu(nvml, "cuda")
        if gpu is not None:
            answers = [
                gpu.described(),
                gpu.memory_used(),
                gpu.processes(),
                gpu.utilisation(),
                gpu.energy_j(),
            ]
            answers += [
                gpu.power_w(),
                *gpu.pcie_bytes_per_s(),
                gpu.pcie_link(),
                gpu.peak_bytes_per_s(),
            ]
            assert 0 not in [answer for answer in answers if isinstance(answer, int)]
    with EnergyMeter("cuda") as meter:
        meter.start()
        energy = meter.stop()
    assert (energy is None) <= (meter.reason is not None)
    with DramMeter() as traffic:
        pass
    assert (traffic.result().utilisation is None) == (traffic.result().reason is not None)


@pytest.mark.parametrize(
    ("session", "reason"),
    [
        ("driver_absent", "NVML Shared Library Not Found"),
        ("a100_mig", "not of a MIG instance"),
        ("no_permission", "neither energy nor power"),
    ],
)
def test_energy_that_is_not_available_has_a_reason(play, session, reason):
    play(session)
    with EnergyMeter("cuda") as meter:
        meter.start()
        assert meter.stop() is None
        assert meter.source is None
        assert reason in meter.reason


def test_the_energy_counter_is_read_around_a_stretch(play):
    play("h100")
    with EnergyMeter("cuda") as meter:
        meter.start()
        energy = meter.stop()
    assert energy.joules == 0  # the counter had not moved on yet: the file says so
    with EnergyMeter("cuda") as meter:
        meter.start()
        energy = meter.stop()
    assert energy.joules == pytest.approx(600)
    assert "counter" in energy.source


def test_without_the_counter_power_is_integrated(play):
    play("wsl")
    with EnergyMeter("cuda") as meter:
        meter.start()
        energy = meter.stop()
    assert energy.joules == pytest.approx(90 * energy.seconds, abs=1)  # hardly any time passed
    assert "trapezoidal" in energy.source


def test_a_gpu_that_is_lost_while_energy_is_read_gives_a_reason(play):
    play("lost_mid_run")
    with EnergyMeter("cuda") as meter:
        meter.start()
        assert meter.stop() is None
    assert "stopped answering" in meter.reason


def test_dram_traffic_comes_from_the_counters(play):
    play("h100")
    with DramMeter() as meter:
        pass
    found = meter.result()
    assert found.utilisation == pytest.approx(0.815)
    assert found.peak_bytes_per_s == pytest.approx(3.352e12, rel=1e-3)
    assert sys.modules["pynvml"].asked["nvmlGpmSampleFree(...)"] == 2


@pytest.mark.parametrize(
    ("session", "reason"),
    [("a100_mig", "Hopper"), ("no_permission", "Permission"), ("wsl", "Function Not Found")],
)
def test_dram_traffic_that_is_not_available_has_a_reason(play, session, reason):
    play(session)
    with DramMeter() as meter:
        pass
    assert meter.result().utilisation is None
    assert reason in meter.result().reason


def test_a_mig_instance_is_found_by_uuid_and_as_the_first_of_its_gpu(play):
    told = play("a100_mig")
    with Nvml() as nvml:
        for gpu in (find_gpu(nvml, name) for name in (told["visible"], "0", None)):
            assert gpu.mig
            assert gpu.index == 0
            assert gpu.memory_used() == 3 * GIB
            assert own_bytes(gpu.processes(), {os.getpid()}) == 2 * GIB
            assert gpu.energy_j() is None


def test_a_cell_alone_on_its_gpu_then_joined_by_another(play):
    play("h100")
    found = watched(load=2, prune=2)
    assert found.memory.problem is None
    assert found.memory.gpu.nvml_process_bytes == 2 * GIB
    assert found.memory.gpu.nvml_device_bytes == 7 * GIB
    assert max(found.timeline.gpu_bytes) == 2 * GIB
    assert found.sharing.foreign
    assert found.sharing.pids == [4242]
    assert found.sharing.phases == ["prune"]
    assert found.sharing.memory_before_bytes == 520 << 20
    traffic = found.pcie
    assert traffic.samples == 2
    assert (traffic.rx_mean_bytes_per_s, traffic.rx_peak_bytes_per_s) == (18e9, 24e9)
    assert traffic.tx_mean_bytes_per_s == 50e6
    assert (traffic.generation, traffic.width, traffic.generation_limit) == (5, 16, 5)


def test_transfers_are_sampled_while_loading_only(play):
    play("h100")
    assert watched(audit=1, prune=1).pcie is None


def test_if_processes_have_no_figure_that_of_the_device_is_used(play):
    play("wsl")
    found = watched(prune=1)
    assert found.memory.gpu.nvml_process_bytes is None
    assert found.memory.gpu.nvml_device_bytes == 5 * GIB
    assert found.timeline.gpu_bytes[-1] == 5 * GIB
    assert found.sharing.foreign is False


def test_in_a_container_it_cannot_tell_whose_processes_it_sees_and_says_so(play):
    play("container")
    found = watched(prune=1)
    assert found.memory.gpu.nvml_process_bytes is None
    shared = found.sharing
    assert (shared.foreign, shared.pids) == (None, [])
    assert "cannot tell" in shared.note
    assert (shared.memory_before_bytes, shared.utilisation_before) == (6 * GIB, 0.97)


def test_more_processes_than_we_have_prove_others_in_a_container_too(play):
    told = read("container")
    entry = told["calls"]["nvmlDeviceGetComputeRunningProcesses(gpu0)"][0][0]
    told["calls"]["nvmlDeviceGetComputeRunningProcesses(gpu0)"] = [
        [entry, {**entry, "pid": 3100002}]
    ]
    play(told)
    found = watched(prune=1)
    assert found.sharing.foreign
    assert found.sharing.phases[-1] == "prune"


def test_without_permission_the_device_is_still_watched(play):
    play("no_permission")
    found = watched(load=1, prune=1)
    assert found.memory.gpu.nvml_device_bytes == 2 * GIB
    assert found.sharing.foreign is None
    assert found.pcie is None


def test_a_gpu_lost_mid_run_keeps_its_figures_until_then_and_is_named(play):
    play("lost_mid_run")
    found = watched(prune=4, perplexity=2).memory
    figures = {entry.phase: entry.gpu for entry in found.phases}
    assert found.gpu.nvml_process_bytes == 3 * GIB
    assert figures["perplexity"] is None
    assert "GPU is lost" in found.problem
    assert all(entry.peak_rss_bytes for entry in found.phases)


def test_without_a_driver_the_reason_is_on_the_record(play):
    play("driver_absent")
    found = watched(prune=1)
    assert found.memory.gpu is None
    assert "NVML Shared Library Not Found" in found.memory.problem
    assert found.sharing is None


def test_a_recorded_session_gives_the_same_answers_again(tmp_path):
    told = read("h100")
    first = replay(told)
    first.NVMLError = real().NVMLError
    recorder = Recorder(first, None)
    handle = recorder.nvmlDeviceGetHandleByIndex(0)
    with pytest.raises(real().NVMLError):
        recorder.nvmlDeviceGetSerial(handle)
    asked = [recorder.nvmlDeviceGetUUID(handle), recorder.nvmlDeviceGetMemoryInfo(handle).used]
    asked.append([one.pid for one in recorder.nvmlDeviceGetComputeRunningProcesses(handle)])
    asked.append([one.pid for one in recorder.nvmlDeviceGetComputeRunningProcesses(handle)])
    recorder.save(tmp_path / "session.json", "a test")
    again = replay(json.loads((tmp_path / "session.json").read_text()))
    same = again.nvmlDeviceGetHandleByIndex(0)
    with pytest.raises(real().NVMLError, match="Not Found"):
        again.nvmlDeviceGetSerial(same)
    repeated = [again.nvmlDeviceGetUUID(same), again.nvmlDeviceGetMemoryInfo(same).used]
    repeated.append([one.pid for one in again.nvmlDeviceGetComputeRunningProcesses(same)])
    repeated.append([one.pid for one in again.nvmlDeviceGetComputeRunningProcesses(same)])
    assert repeated == asked
    assert asked[-1] == [os.getpid()]
