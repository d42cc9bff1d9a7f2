"""A pynvml that answers as it is told: the fixture `fake_nvml` makes one."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace

import pytest


@pytest.fixture
def fake_nvml():
    return make


def make(**answers):
    """A module whose functions give ``answers``, by name; an exception is raised, a callable called."""
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
