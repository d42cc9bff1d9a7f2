"""What each kind of machine gives, from sessions of NVML that are replayed: in this process and in the sampler's."""

from __future__ import annotations

import json
import os
import sys
import time

import pytest

from nvml_replay import FOLDER, Recorder, read, real, replay, shim
from prunebench.measure.devices.dram_traffic import DramMeter
from prunebench.measure.devices.energy import EnergyMeter
from prunebench.measure.devices.gpu import own_bytes
from prunebench.measure.devices.gpu_lookup import all_gpus, find_gpu, torch_gpu
from prunebench.measure.devices.memory import MemorySampler
from prunebench.measure.devices.nvml import Nvml

GIB = 1 << 30
SESSIONS = sorted(path.stem for path in FOLDER.glob("*.json"))


@pytest.fixture
def play(monkeypatch):
    """Makes a session, by name or as given, the pynvml of this process."""

    def start(session):
        told = read(session) if isinstance(session, str) else session
        monkeypatch.setitem(sys.modules, "pynvml", replay(told))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if told["visible"]:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", told["visible"])
        return told

    return start


@pytest.fixture
def sampled(monkeypatch, tmp_path):
    """Runs phases under a sampler whose process sees a session; gives what the sampler gave."""

    def run(session, *phases):
        told = read(session) if isinstance(session, str) else session
        folder = shim(tmp_path / "shim", told)
        places = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(places))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if told["visible"]:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", told["visible"])
        with MemorySampler() as sampler:
            wait_for_gpu(sampler)
            for name, seconds in phases:
                sampler.phase(name)
                time.sleep(seconds)
            memory, timeline = sampler.result()
        return memory, timeline, sampler

    return run


def wait_for_gpu(sampler):
    """Until NVML was looked at once, or could not be."""
    end = time.monotonic() + 20
    while not any(
        word in os.pread(sampler._file.fileno(), 1 << 16, 0) for word in (b"pids", b"problem")
    ):
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("session", SESSIONS)
def test_a_session_says_where_it_comes_from_and_breaks_nothing(play, session):
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
        time.sleep(0.1)
        energy = meter.stop()
    assert energy.joules == pytest.approx(90 * energy.seconds, rel=0.1)
    assert "trapezoidal" in energy.source


def test_a_gpu_that_is_lost_while_energy_is_read_is_told(play):
    play("lost_mid_run")
    with EnergyMeter("cuda") as meter:
        meter.start()
        assert meter.stop() is None
    assert "stopped answering" in meter.reason


def test_dram_traffic_is_what_the_counters_say(play):
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


def test_a_cell_alone_on_its_gpu_then_joined_by_another(sampled):
    memory, timeline, sampler = sampled("h100", ("load", 0.4), ("prune", 0.3))
    assert memory.problem is None
    assert memory.gpu.nvml_process_bytes == 2 * GIB
    assert memory.gpu.nvml_device_bytes == 7 * GIB
    assert max(timeline.gpu_bytes) == 2 * GIB
    shared = sampler.sharing()
    assert shared.foreign
    assert shared.pids == [4242]
    assert "prune" in shared.phases
    assert shared.memory_before_bytes == 520 << 20
    traffic = sampler.pcie()
    assert 1 <= traffic.samples <= 10
    assert traffic.rx_peak_bytes_per_s in (12e9, 24e9)
    assert traffic.tx_mean_bytes_per_s < traffic.rx_mean_bytes_per_s
    assert (traffic.width, traffic.generation_limit) == (16, 5)


def test_transfers_are_sampled_while_loading_only(sampled):
    _, _, sampler = sampled("h100", ("audit", 0.2), ("prune", 0.2))
    assert sampler.pcie() is None


def test_where_processes_have_no_figure_the_device_stands_in(sampled):
    memory, timeline, sampler = sampled("wsl", ("prune", 0.2))
    assert memory.gpu.nvml_process_bytes is None
    assert memory.gpu.nvml_device_bytes == 5 * GIB
    assert timeline.gpu_bytes[-1] == 5 * GIB
    assert sampler.sharing().foreign is False


def test_a_container_cannot_tell_who_is_who_and_says_what_it_saw(sampled):
    memory, _, sampler = sampled("container", ("prune", 0.2))
    assert memory.gpu.nvml_process_bytes is None
    shared = sampler.sharing()
    assert (shared.foreign, shared.pids) == (None, [])
    assert "cannot tell" in shared.note
    assert (shared.memory_before_bytes, shared.utilisation_before) == (6 * GIB, 0.97)


def test_more_processes_than_we_are_prove_others_in_a_container_too(sampled):
    told = read("container")
    entry = told["calls"]["nvmlDeviceGetComputeRunningProcesses(gpu0)"][0][0]
    told["calls"]["nvmlDeviceGetComputeRunningProcesses(gpu0)"] = [
        [entry, {**entry, "pid": 3100002}]
    ]
    _, _, sampler = sampled(told, ("prune", 0.2))
    assert sampler.sharing().foreign
    assert sampler.sharing().phases[-1] == "prune"


def test_without_permission_the_device_is_still_watched(sampled):
    memory, _, sampler = sampled("no_permission", ("prune", 0.2))
    assert memory.gpu.nvml_device_bytes == 2 * GIB
    assert sampler.sharing().foreign is None
    assert sampler.pcie() is None


def test_a_gpu_lost_mid_run_keeps_its_figures_until_then_and_is_named(sampled):
    memory, _, _ = sampled("lost_mid_run", ("prune", 0.4), ("perplexity", 0.2))
    figures = {entry.phase: entry.gpu for entry in memory.phases}
    assert memory.gpu.nvml_process_bytes == 3 * GIB
    assert figures["perplexity"] is None
    assert "GPU is lost" in memory.problem
    assert all(entry.peak_rss_bytes for entry in memory.phases)


def test_without_a_driver_the_reason_stands_on_the_record(sampled):
    memory, _, sampler = sampled("driver_absent", ("prune", 0.2))
    assert memory.gpu is None
    assert "NVML Shared Library Not Found" in memory.problem
    assert sampler.sharing() is None


def test_an_nvml_that_hangs_stops_neither_the_other_samples_nor_the_end(sampled):
    told = read("h100")
    processes = told["calls"]["nvmlDeviceGetComputeRunningProcesses(gpu0)"]
    told["calls"]["nvmlDeviceGetComputeRunningProcesses(gpu0)"] = [*processes[:3], {"hang": True}]
    memory, timeline, sampler = sampled(told, ("prune", 3.2), ("perplexity", 0.2))
    assert sampler._process.returncode == 0  # it ended by itself when it was told to
    assert "has not answered" in memory.problem
    assert memory.gpu.nvml_process_bytes == 2 * GIB
    assert {entry.phase: entry.gpu for entry in memory.phases}["perplexity"] is None
    assert memory.phases[-1].peak_rss_bytes
    assert timeline.time_s[-1] > 3.3


def test_what_the_recorder_writes_is_answered_again(tmp_path):
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
