from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from prunebench.measure.devices.gpu import GpuDevice, own_bytes
from prunebench.measure.devices.gpu_lookup import all_gpus, find_gpu
from prunebench.measure.devices.nvml import Nvml


class NVMLError(Exception):
    pass


def process(pid, used):
    return SimpleNamespace(pid=pid, usedGpuMemory=used)


def test_answers_of_the_driver_are_passed_on(nvml):
    session = nvml()
    assert session.available and session.reason is None
    assert session.driver() == "570.86.15"
    assert all_gpus(session) == [GpuDevice(index, "NVIDIA Test", 80 << 30) for index in (0, 1)]
    assert find_gpu(session, "1").memory_used() == (2 << 30) + 1
    assert own_bytes(find_gpu(session, "0").processes(), {11}) == 1 << 30
    assert own_bytes(find_gpu(session, "0").processes(), {11, 12}) == (1 << 30) + 5


def test_older_bindings_give_bytes(nvml):
    session = nvml(nvmlDeviceGetName=b"NVIDIA Old", nvmlSystemGetDriverVersion=b"450.1")
    assert (all_gpus(session)[0].name, session.driver()) == ("NVIDIA Old", "450.1")


def nothing(session):
    gpu = find_gpu(session, None)
    return (
        session.driver(),
        all_gpus(session),
        gpu and gpu.memory_used(),
        gpu and own_bytes(gpu.processes(), {11}),
    )


def test_without_the_library_nothing_is_available(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    session = Nvml()
    assert not session.available
    assert "pynvml" in session.reason
    assert nothing(session) == (None, [], None, None)
    session.close()


@pytest.mark.parametrize(
    "error", [NVMLError("Driver Not Loaded"), OSError("libnvidia-ml.so.1"), AttributeError("x")]
)
def test_without_a_driver_nothing_is_available(nvml, error):
    session = nvml(nvmlInit=error)
    assert not session.available
    assert str(error) in session.reason
    assert nothing(session) == (None, [], None, None)


@pytest.mark.parametrize(
    "name",
    [
        "nvmlSystemGetDriverVersion",
        "nvmlDeviceGetCount",
        "nvmlDeviceGetHandleByIndex",
        "nvmlDeviceGetName",
        "nvmlDeviceGetMemoryInfo",
        "nvmlDeviceGetComputeRunningProcesses",
        "nvmlDeviceGetGraphicsRunningProcesses",
        "nvmlShutdown",
    ],
)
def test_each_call_may_fail_alone(nvml, name):
    session = nvml(**{name: NVMLError("Insufficient Permissions")})
    driver, devices, device, own = nothing(session)
    assert driver == (None if "Driver" in name else "570.86.15")
    lost = name in {"nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex"}
    assert len(devices) == (0 if lost else 2)
    assert device == (None if lost or "MemoryInfo" in name else 2 << 30)
    assert own == (None if lost or "Compute" in name else 1 << 30)
    if devices:
        assert (devices[0].name is None) == (name == "nvmlDeviceGetName")
        assert (devices[0].total_bytes is None) == (name == "nvmlDeviceGetMemoryInfo")


@pytest.mark.parametrize("used", [None, (1 << 64) - 1])
def test_memory_that_nvml_leaves_open_is_not_zero(nvml, used):
    session = nvml(nvmlDeviceGetComputeRunningProcesses=[process(11, used)])
    assert own_bytes(find_gpu(session, None).processes(), {11}) is None
    session = nvml(nvmlDeviceGetMemoryInfo=SimpleNamespace(total=None, used=used))
    assert find_gpu(session, None).memory_used() is None
    assert all_gpus(session)[0].total_bytes is None


def test_a_pid_that_is_not_listed_is_not_available(nvml):
    assert own_bytes(find_gpu(nvml(), None).processes(), {99}) is None


def test_a_process_in_both_lists_counts_once_and_its_slices_add_up(nvml):
    session = nvml(
        nvmlDeviceGetComputeRunningProcesses=[process(11, 4), process(11, 6), process(11, None)],
        nvmlDeviceGetGraphicsRunningProcesses=[process(11, 7)],
    )
    assert own_bytes(find_gpu(session, None).processes(), {11}) == 10


def test_closing_shuts_the_library_once_and_ends_all_answers(nvml):
    with nvml() as session:
        library = sys.modules["pynvml"]
    session.close()
    assert library.shut == 1
    assert nothing(session) == (None, [], None, None)
