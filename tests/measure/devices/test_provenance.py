from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib import metadata

import psutil

from prunebench.measure.devices import provenance
from prunebench.measure.devices.provenance import machine


def test_it_is_plain_json_and_names_hardware_and_software():
    found = machine()
    assert json.loads(json.dumps(found)) == found
    assert found["python"] == platform.python_version()
    assert found["torch"] == metadata.version("torch")
    assert found["prunebench"] == metadata.version("prunebench")
    assert found["memory_bytes"] == psutil.virtual_memory().total
    assert found["cpu_cores_logical"] >= (found["cpu_cores_usable"] or 1) >= 1
    assert found["cpu"]
    assert len(found["load_average"]) == 3


def test_threads_are_torchs_own():
    import torch

    assert machine()["threads"] == torch.get_num_threads()


def test_it_needs_no_torch_and_loads_none():
    code = (
        "import sys\nfrom prunebench.measure.devices.provenance import machine\nfound = machine()\n"
        "assert 'torch' not in sys.modules\nassert found['threads'] is None\nassert found['torch']"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_gpus_are_named_if_the_driver_answers(monkeypatch, fake_nvml):
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(nvmlDeviceGetCount=1))
    found = machine()
    assert found["gpus"] == [{"name": "NVIDIA Test", "memory_bytes": 80 << 30}]
    assert (found["gpu_driver"], found["nvml"]) == ("570.86.15", "available")


def test_without_a_driver_the_reason_is_given(monkeypatch, fake_nvml):
    monkeypatch.setitem(
        sys.modules, "pynvml", fake_nvml(nvmlInit=RuntimeError("Driver Not Loaded"))
    )
    found = machine()
    assert (found["gpus"], found["gpu_driver"]) == ([], None)
    assert found["nvml"] == "not available (RuntimeError: Driver Not Loaded)"


def test_a_distribution_that_is_absent_has_no_version(monkeypatch):
    monkeypatch.setattr(provenance, "_DISTRIBUTIONS", ("no-such-distribution",))
    assert machine()["no-such-distribution"] is None
