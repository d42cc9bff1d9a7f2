"""Two kinds of pynvml for tests: `fake_nvml` answers as it is told, `play` replays a session."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from nvml_replay import read, replay
from prunebench.measure.devices.nvml import Nvml


@pytest.fixture
def play(monkeypatch):
    """Make a session, by name or as given, the pynvml of this process."""

    def start(session):
        told = read(session) if isinstance(session, str) else session
        monkeypatch.setitem(sys.modules, "pynvml", replay(told))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if told["visible"]:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", told["visible"])
        return told

    return start


@pytest.fixture
def fake_nvml():
    return make


@pytest.fixture
def nvml(monkeypatch):
    """Open a session of an NVML that gives these answers; see `make`."""
    opened = []

    def open_with(**answers):
        library = make(**answers)
        monkeypatch.setitem(sys.modules, "pynvml", library)
        opened.append(Nvml())
        return opened[-1]

    yield open_with
    for each in opened:
        each.close()


def make(**answers):
    """A module whose functions give ``answers``: exceptions are raised, callables are called."""
    module = ModuleType("pynvml")
    module.shut = 0

    def shutdown():
        module.shut += 1

    standard = {
        "nvmlInit": None,
        "nvmlShutdown": shutdown,
        "nvmlSystemGetDriverVersion": "570.86.15",
        "nvmlDeviceGetCount": 2,
        "nvmlDeviceGetHandleByIndex": lambda index: f"handle {index}",
        "nvmlDeviceGetName": "NVIDIA Test",
        "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle[-1]}aaa",
        "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(
            total=80 << 30, used=int(handle[-1]) + (2 << 30)
        ),
        "nvmlDeviceGetComputeRunningProcesses": lambda _handle: [
            process(11, 1 << 30),
            process(12, 5),
        ],
        "nvmlDeviceGetGraphicsRunningProcesses": lambda _handle: [],
    }
    for name, answer in (standard | answers).items():
        setattr(module, name, answering(answer))
    return module


def answering(answer):
    def call(*arguments):
        if isinstance(answer, Exception):
            raise answer
        return answer(*arguments) if callable(answer) else answer

    return call


def process(pid, used):
    return SimpleNamespace(pid=pid, usedGpuMemory=used)
