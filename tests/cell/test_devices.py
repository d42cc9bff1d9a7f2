"""What the devices say during a cell stands on its record: on a GPU that is played from a file, and without one."""

from __future__ import annotations

import io
import os
import sys

import pytest
import torch

from nvml_replay import read, shim
from prunebench.cell import run as module
from prunebench.cell.events import EventWriter
from prunebench.measure.devices.memory import MemorySampler
from prunebench.plugin.host import load_plugins
from prunebench.record.record import Record
from prunebench.suite.load import load_suite
from prunebench.suite.plan import plan
from rig import Rig

GIB = 1 << 30
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")

SLOW = """
import time
from prunebench import Method, hookimpl

class Slow(Method):
    name = "slow"
    def prune(self, model, context):
        time.sleep(0.8)

@hookimpl
def prunebench_register_method():
    return Slow
"""


@pytest.fixture
def cell(tmp_path, monkeypatch):
    rig = Rig(tmp_path)
    rig.plugin("slow", SLOW)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    registry = load_plugins()
    overrides = ["profile.latency=[]", "device=cpu"]
    return plan(
        load_suite(rig.suite("slow"), registry=registry, overrides=overrides), registry
    ).cells[1]


def run(cell):
    threads = torch.get_num_threads()
    record = module.run_cell(cell, events=EventWriter(io.StringIO()), command="none")
    torch.set_num_threads(threads)
    return record


def test_a_cell_on_a_shared_gpu_has_peaks_by_phase_and_names_the_others(
    cell, monkeypatch, tmp_path
):
    folder = shim(tmp_path / "shim", read("h100"))
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    )
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(module, "MemorySampler", lambda **_: MemorySampler(gpu=True))
    record = run(cell)
    assert record.status == "ok", record.error
    assert record.contention.gpu.foreign
    assert record.contention.gpu.pids == [4242]
    assert "prune" in record.contention.gpu.phases
    assert record.cost.peak_gpu_bytes == 2 * GIB
    assert record.cost.peak_gpu_source == "NVML, this process"
    assert record.memory.gpu.nvml_device_bytes == 7 * GIB
    assert Record.model_validate_json(record.model_dump_json(by_alias=True)) == record


def test_a_cell_on_the_cpu_tells_who_took_its_cores_and_nothing_of_a_gpu(cell):
    record = run(cell)
    assert record.status == "ok", record.error
    assert record.contention.gpu is None
    (load,) = [one for one in record.contention.cpu if one.phase == "prune"]
    assert load.wall_s >= 0.8
    assert 0 <= load.others_share <= 1
    assert (record.cost.peak_gpu_bytes, record.cost.peak_gpu_source, record.memory.gpu) == (
        None,
        None,
        None,
    )
    assert 0 < record.io.load.host_s <= record.io.load.seconds
    assert (record.io.load.device_s, record.io.load.pcie) == (None, None)
    assert all(entry.uss_bytes for entry in record.memory.phases)


def test_a_record_of_before_still_loads(cell):
    record = run(cell)
    old = record.model_dump(mode="json", by_alias=True, exclude={"contention", "energy"})
    for key in ("host_s", "device_s", "device_bytes", "pcie"):
        del old["io"]["load"][key]
    for phase in old["memory"]["phases"]:
        del phase["uss_bytes"]
    del old["memory"]["problem"], old["cost"]["peak_gpu_source"]
    loaded = Record.model_validate(old)
    assert (loaded.contention, loaded.energy, loaded.io.load.host_s) == (None, None, None)
