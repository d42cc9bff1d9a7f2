"""A cell's record has what its devices said: with a GPU that is replayed, and without one."""

from __future__ import annotations

import io
import os
import sys
import time

import pytest
import torch

from nvml_replay import read, shim
from prunebench.cell import run as module
from prunebench.cell.events import EventWriter
from prunebench.isolation.timing_lock import TIMED
from prunebench.measure.devices import cpu_contention
from prunebench.measure.devices.memory import MemorySampler
from prunebench.plugin.host import load_plugins
from prunebench.record.record import Record
from prunebench.suite.load import load_suite
from prunebench.suite.plan import plan
from rig import Rig

GIB = 1 << 30
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


@pytest.fixture
def cell(tmp_path):
    rig = Rig(tmp_path)
    registry = load_plugins()
    return plan(load_suite(rig.suite("magnitude"), registry=registry), registry).cells[1]


class PatientSampler(MemorySampler):
    """Begins to prune when its process has seen the GPU's last figure."""

    def phase(self, name):
        super().phase(name)
        while name == "prune" and f" {7 * GIB}\n".encode() not in self.written():
            assert self._process.poll() is None
            time.sleep(0.01)

    def written(self):
        return os.pread(self._file.fileno(), 1 << 20, 0)


def run(cell, partial_results=None):
    threads = torch.get_num_threads()
    record = module.run_cell(
        cell,
        events=EventWriter(io.StringIO()),
        command="none",
        partial_results=partial_results,
    )
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
    monkeypatch.setattr(module, "MemorySampler", lambda **_: PatientSampler(gpu=True))
    record = run(cell)
    assert record.status == "ok", record.error
    assert record.contention.gpu.foreign
    assert record.contention.gpu.pids == [4242]
    assert "prune" in record.contention.gpu.phases
    assert record.cost.peak_gpu_bytes == 2 * GIB
    assert record.cost.peak_gpu_source == "NVML, this process"
    assert record.memory.gpu.nvml_device_bytes == 7 * GIB
    assert Record.model_validate_json(record.model_dump_json(by_alias=True)) == record


def test_a_cell_on_the_cpu_has_the_load_of_others_and_nothing_about_a_gpu(cell, monkeypatch):
    monkeypatch.setattr(cpu_contention, "LEAST_S", 0.0)  # these phases are too short otherwise
    record = run(cell)
    assert record.status == "ok", record.error
    assert record.contention.gpu is None
    (load,) = [one for one in record.contention.cpu if one.phase == "prune"]
    assert load.wall_s > 0
    assert 0 <= load.others_share <= 1
    assert (record.cost.peak_gpu_bytes, record.cost.peak_gpu_source, record.memory.gpu) == (
        None,
        None,
        None,
    )
    assert 0 < record.io.load.host_s <= record.io.load.seconds
    assert (record.io.load.device_s, record.io.load.pcie) == (None, None)
    assert all(entry.uss_bytes for entry in record.memory.phases)


@pytest.mark.parametrize("own_process", [True, False])
def test_timed_phases_give_tensors_pages_of_their_own_and_others_keep_memory(
    cell, monkeypatch, own_process
):
    set_to: list[str] = []
    found: dict[str, str] = {}

    class Events(EventWriter):
        def phase(self, name):  # called when the allocator is set
            found[name] = set_to[-1] if set_to else ""

    monkeypatch.setattr(module, "give_tensors_pages", lambda: set_to.append("pages"))
    monkeypatch.setattr(module, "keep_freed_memory", lambda: set_to.append("kept"))
    threads = torch.get_num_threads()
    events = Events(io.StringIO())
    record = module.run_cell(cell, events=events, command="none", own_process=own_process)
    torch.set_num_threads(threads)
    assert record.status == "ok", record.error
    if own_process:
        assert (found["load"], found["prune"]) == ("pages", "kept")
        timed = {phase for phase, how in found.items() if how == "pages" and phase != "start"}
        assert timed == found.keys() & set(TIMED)
    else:
        assert not set_to


def test_a_record_without_newer_fields_is_read(cell):
    record = run(cell)
    old = record.model_dump(mode="json", by_alias=True, exclude={"contention", "energy"})
    for key in ("host_s", "device_s", "device_bytes", "pcie"):
        del old["io"]["load"][key]
    for phase in old["memory"]["phases"]:
        del phase["uss_bytes"]
    del old["memory"]["problem"], old["cost"]["peak_gpu_source"]
    loaded = Record.model_validate(old)
    assert (loaded.contention, loaded.energy, loaded.io.load.host_s) == (None, None, None)


def test_a_cell_that_was_interrupted_prunes_by_the_times_that_it_measured_first(
    tmp_path, monkeypatch
):
    """With a budget of time: the second run would measure other times, and choose otherwise."""
    rig, calls = Rig(tmp_path), []
    text = "budget-search: {target_latency: 0.2, rounds: 1, mlp: [0.5], attention: [0.5]}"
    registry = load_plugins()
    cell = plan(load_suite(rig.suite(text), registry=registry), registry).cells[1]

    def step_seconds(model, others, **_):
        found = []
        for other in others:
            calls.append(other)
            mine, theirs = (
                0.05 + len(calls) * 1e-6 * sum(weight.numel() for weight in each.parameters())
                for each in (model, other)
            )
            found.append((mine, theirs))
        return found

    monkeypatch.setattr("prunebench.measure.speed.step_seconds.step_seconds", step_seconds)
    phases = []
    monkeypatch.setattr(module.TimingLock, "enter_phase", lambda _, name: phases.append(name))
    first, second = (run(cell, tmp_path / "partial.json") for _ in range(2))
    assert (first.status, second.status) == ("ok", "ok"), first.error
    assert first.method_notes["step_seconds"] == second.method_notes["step_seconds"]
    assert first.audit == second.audit
    assert len(calls) == 4 + 1 + 1  # only the pruned model is timed again
    assert second.provenance["taken_over_from_an_interrupted_run"] == [
        "step seconds",
        "perplexity 1",
    ]
    # It computes alone while it times, and only then.
    begin = phases.index("prune")
    assert phases[begin : begin + 5] == ["prune", *["latency", "prune"] * 2]
