from __future__ import annotations

import pytest

from prunebench.measure.devices.gpu_lookup import find_gpu, torch_gpu, visible_entry


@pytest.mark.parametrize(
    ("visible", "index"),
    [
        (None, 0),
        ("1", 1),
        ("1,0", 1),
        ("GPU-1aaa", 1),
        ("GPU-1", 1),
        ("", None),
        ("-1", None),
        ("MIG-1aaa", None),
    ],
)
def test_the_gpu_that_cuda_calls_zero(nvml, visible, index):
    gpu = find_gpu(nvml(), visible)
    assert (gpu and gpu.index) == index


@pytest.mark.parametrize(
    ("device", "shown", "entry"),
    [
        ("cuda", None, None),
        ("cuda:1", None, "1"),
        ("cuda", "3,1", "3"),
        ("cuda:1", "3,1", "1"),
        ("cuda:2", "3,1", ""),
    ],
)
def test_a_device_of_torch_is_an_entry_of_the_visible_ones(monkeypatch, device, shown, entry):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    assert visible_entry(device) == entry


def test_a_gpu_whose_uuid_cannot_be_read_is_not_found_by_it(nvml):
    session = nvml(nvmlDeviceGetUUID=RuntimeError("Insufficient Permissions"))
    assert find_gpu(session, "GPU-1aaa") is None
    assert find_gpu(session, "1").index == 1


def test_the_gpu_of_a_torch_device_depends_on_which_are_visible(nvml, monkeypatch):
    session = nvml()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert (torch_gpu(session, "cuda").index, torch_gpu(session, "cuda:1").index) == (1, 0)
    assert torch_gpu(session, "cuda:2") is None
