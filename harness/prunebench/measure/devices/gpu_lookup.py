"""Find GPUs through NVML: all of them, or the one that torch calls by a name like 'cuda:1'."""

from __future__ import annotations

import os
from typing import Any

from prunebench.measure.devices.gpu import Gpu, GpuDevice
from prunebench.measure.devices.nvml import Nvml, count, text


def all_gpus(nvml: Nvml) -> list[GpuDevice]:
    """All GPUs that NVML shows, in its order; empty if NVML is not available."""
    handles = ((index, _handle(nvml, index)) for index in _indices(nvml))
    return [Gpu(nvml, handle, index).described() for index, handle in handles if handle is not None]


def torch_gpu(nvml: Nvml, device: str) -> Gpu | None:
    """The GPU that torch calls ``device`` ('cuda', 'cuda:1'); None if NVML does not show it."""
    return find_gpu(nvml, visible_entry(device))


def visible_entry(device: str) -> str | None:
    """The entry of CUDA_VISIBLE_DEVICES that ``device`` refers to; '' if it has no such entry.

    If the variable is not set, the device's own number, or None for the first GPU.
    """
    number = int(device.partition(":")[2] or 0)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return str(number) if number else None
    entries = visible.split(",")
    return entries[number] if number < len(entries) else ""


def find_gpu(nvml: Nvml, visible: str | None) -> Gpu | None:
    """The GPU that CUDA numbers 0 if CUDA_VISIBLE_DEVICES is ``visible``; None if there is none.

    A number is read as NVML's own (bus order, which CUDA also uses among equal GPUs). For a GPU
    that is split (MIG) this gives the first instance, the only one that CUDA shows of it.
    'MIG-...' names an instance by its UUID.
    """
    first = None if visible is None else visible.split(",")[0].strip()
    if first is not None and first.startswith("MIG-"):
        handle = nvml.call("nvmlDeviceGetHandleByUUID", first)
        return None if handle is None else _instance(nvml, handle)
    for index in _indices(nvml):
        handle = _handle(nvml, index)
        if handle is not None and _matches(nvml, handle, index, first):
            return _first_instance(nvml, handle, index)
    return None


def _matches(nvml: Nvml, handle: Any, index: int, name: str | None) -> bool:
    if name is None or name == str(index):
        return True
    if not name.startswith("GPU-"):
        return False
    # CUDA accepts any unambiguous beginning of the UUID.
    return (text(nvml.call("nvmlDeviceGetUUID", handle)) or "").startswith(name)


def _first_instance(nvml: Nvml, handle: Any, index: int) -> Gpu:
    """The first MIG instance of a GPU that is split, else the GPU itself."""
    mode = nvml.call("nvmlDeviceGetMigMode", handle)
    if mode and mode[0]:
        for number in range(count(nvml.call("nvmlDeviceGetMaxMigDeviceCount", handle)) or 0):
            instance = nvml.call("nvmlDeviceGetMigDeviceHandleByIndex", handle, number)
            if instance is not None:
                return Gpu(nvml, instance, index, parent=handle)
    return Gpu(nvml, handle, index)


def _instance(nvml: Nvml, handle: Any) -> Gpu:
    parent = nvml.call("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", handle)
    index = None if parent is None else count(nvml.call("nvmlDeviceGetIndex", parent))
    return Gpu(nvml, handle, index, parent=parent, split=True)


def _indices(nvml: Nvml) -> range:
    return range(count(nvml.call("nvmlDeviceGetCount")) or 0)


def _handle(nvml: Nvml, index: int) -> Any:
    return nvml.call("nvmlDeviceGetHandleByIndex", index)
