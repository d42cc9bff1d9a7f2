"""Watching a GPU: what one look notes, and what a thread that hangs costs. NVML is replayed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import deque

import pytest

from nvml_replay import read, shim
from prunebench.measure.devices.gpu_lookup import torch_gpu
from prunebench.measure.devices.gpu_watch import SILENT_S, GpuReader, GpuWatch
from prunebench.measure.devices.nvml import Nvml

GIB = 1 << 30
ME = os.getpid()
WITHIN_S = 100


def test_the_first_look_notes_the_device_and_later_ones_the_processes(play):
    play("h100")
    notes: deque[str] = deque()
    with Nvml() as nvml:
        reader = GpuReader(torch_gpu(nvml, "cuda"), lambda: {ME}, notes, {ME})
        reader.first(5.0)
        seen = [reader.look(6.0 + number) for number in range(4)]
        reader.transfers(10.5)
    first, empty, alone, joined, traffic, link = notes
    assert first == f"first 5.0000 {520 << 20} 0.00"
    assert empty == "pids 6.0000 0 1"
    assert alone == "pids 7.0000 1 1"  # again only when somebody comes or goes
    assert joined.startswith("pids 9.0000 1 1 4242:")
    assert traffic == "pcie 10.5000 40000000 12000000000"
    assert link == "link 1 16 5 16"
    assert seen[-1] == (2 * GIB, 7 * GIB)


def test_a_new_process_of_our_own_is_not_somebody_else(play):
    told = read("h100")
    entry = {"pid": "self", "usedGpuMemory": GIB}
    child = {"pid": 77, "usedGpuMemory": 3}
    told["calls"]["nvmlDeviceGetComputeRunningProcesses(gpu0)"] = [[entry], [entry, child]]
    play(told)
    notes: deque[str] = deque()
    with Nvml() as nvml:
        reader = GpuReader(torch_gpu(nvml, "cuda"), lambda: {ME, 77}, notes, {ME})
        own = [reader.look(float(number))[0] for number in range(2)]
    assert list(notes) == ["pids 0.0000 1 1", "pids 1.0000 2 2"]
    assert own == [GIB, GIB + 3]


def hanging():
    """The session 'h100' whose process query hangs at the third look."""
    told = read("h100")
    query = "nvmlDeviceGetComputeRunningProcesses(gpu0)"
    told["calls"][query] = [*told["calls"][query][:2], {"hang": True}]
    return told


def test_an_nvml_that_hangs_is_named_and_its_last_reading_is_dropped(play, monkeypatch):
    hangs = threading.Event()
    monkeypatch.setattr("nvml_replay.hang", lambda: (hangs.set(), threading.Event().wait()))
    monkeypatch.setattr("prunebench.measure.devices.gpu_watch.EVERY_S", 0.0)
    play(hanging())
    watch = GpuWatch("cuda", lambda: {ME})
    assert hangs.wait(WITHIN_S)
    read_at = watch._read_at
    assert watch.latest(read_at + 0.9 * SILENT_S)[0] == 2 * GIB
    assert watch.latest(read_at + 1.1 * SILENT_S) == (None, None)
    assert watch.notes()[-1] == "problem NVML has not answered for 2 s"
    assert watch.latest(read_at + 9) == (None, None)
    assert watch.notes() == []  # said once


@pytest.mark.parametrize(
    ("session", "words"),
    [
        ("driver_absent", "NVML Shared Library Not Found"),
        ("lost_mid_run", "GPU is lost"),
    ],
)
def test_the_thread_ends_with_a_problem(play, monkeypatch, session, words):
    monkeypatch.setattr("prunebench.measure.devices.gpu_watch.EVERY_S", 0.0)
    play(session)
    before = set(threading.enumerate())
    watch = GpuWatch("cuda", lambda: {ME})
    for thread in set(threading.enumerate()) - before:
        thread.join(WITHIN_S)
    assert watch.latest(watch._read_at) == (None, None)
    last = watch.notes()[-1]
    assert last.startswith("problem ")
    assert words in last


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs poll")
def test_the_samplers_process_ends_although_a_thread_hangs_in_nvml(tmp_path, monkeypatch):
    folder = shim(tmp_path / "shim", hanging())
    places = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(places))
    command = [sys.executable, "-P", "-m", "prunebench.measure.devices.sampler", str(ME), "0.01"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen([*command, "cuda"], **pipes) as sampler:
        assert sampler.stderr.readline() == b"NVML hangs\n"
        sampler.stdin.close()
        assert sampler.wait(WITHIN_S) == 0
