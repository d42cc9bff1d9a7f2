"""Who else used the GPU, and whether it slowed itself down: an NVML that answers as it is told."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest

from prunebench.measure.devices.gpu_disturbance import GpuWatch
from prunebench.measure.devices.watch import watch_of

OURS = os.getpid()


def sample(pid, used, at):
    return SimpleNamespace(pid=pid, smUtil=used, timeStamp=at)


@pytest.fixture
def gpu(monkeypatch, fake_nvml):
    """A function that gives the watch of a GPU with these answers: reasons, and samples by reading."""

    def watch(reasons=0, samples=((), ())):
        answers = iter(samples)
        module = fake_nvml(
            nvmlDeviceGetCurrentClocksEventReasons=reasons,
            nvmlDeviceGetProcessUtilization=lambda *_: list(next(answers)),
        )
        monkeypatch.setitem(sys.modules, "pynvml", module)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        return GpuWatch("cuda:0")

    return watch


def told(watch):
    before = watch.read()
    return watch.disturbed(before, watch.read())


def test_a_gpu_that_only_we_use_is_undisturbed(gpu):
    assert told(gpu(samples=[[], [sample(OURS, 97, 10)]])) is None


def test_another_process_that_computes_disturbs(gpu):
    watch = gpu(samples=[[], [sample(OURS, 60, 10), sample(4711, 35, 11)]])
    assert told(watch) == "another process used the GPU (35 % of the time)"


def test_another_process_that_only_holds_memory_does_not(gpu):
    assert told(gpu(samples=[[], [sample(4711, 0, 11)]])) is None


def test_what_others_did_before_the_round_does_not_count(gpu):
    assert told(gpu(samples=[[sample(4711, 80, 5)], [sample(OURS, 90, 10)]])) is None


def test_only_new_samples_are_asked_for(monkeypatch, gpu):
    asked = []
    watch = gpu()
    watch._nvml._library.nvmlDeviceGetProcessUtilization = lambda _, since: (
        asked.append(since) or [sample(OURS, 9, since + 7)]
    )
    watch.read()
    watch.read()
    assert asked == [0, 7]


@pytest.mark.parametrize(
    ("bits", "words"),
    [(0x08, "a hardware slowdown"), (0x20, "its temperature, by the driver"), (0x80, "the power")],
)
def test_a_gpu_that_lowers_its_clocks_disturbs(gpu, bits, words):
    reason = told(gpu(reasons=bits))
    assert reason.startswith(f"the GPU lowered its clocks because of {words}")


@pytest.mark.parametrize("bits", [0x0, 0x1, 0x4, 0x10])
def test_idle_clocks_and_the_power_cap_hold_for_every_round(gpu, bits):
    assert told(gpu(reasons=bits)) is None


def test_without_nvml_nothing_is_told_and_the_reason_is(monkeypatch, fake_nvml):
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(nvmlInit=OSError("no driver")))
    watch = GpuWatch("cuda:0")
    assert told(watch) is None
    assert "NVML does not show cuda:0: OSError: no driver" in watch.blind


def test_calls_that_a_gpu_does_not_have_are_no_disturbance(monkeypatch, fake_nvml):
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml())
    assert told(GpuWatch("cuda:0")) is None


def test_a_gpu_is_watched_together_with_the_cpu_that_feeds_it(gpu):
    gpu()  # NVML shows two GPUs
    assert watch_of("cpu").blind is None
    assert watch_of("cuda:1").blind is None
    assert watch_of("cuda:7").blind == "NVML does not show cuda:7: no such GPU"
