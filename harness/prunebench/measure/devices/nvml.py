"""A thin, guarded session of NVML (module `pynvml` of the distribution nvidia-ml-py); `gpu` has the devices.

Every call gives a value or None, "not available": no library, no driver, no permission, a call that the GPU does not
support, a GPU that is lost. Nothing here raises, and nothing here imports torch.
"""

from __future__ import annotations

import importlib
import os
from types import TracebackType
from typing import Any, Self

from prunebench.measure.devices.gpu import Gpu, GpuDevice, count, text

_LOST = ("NVMLError_GpuIsLost", "NVMLError_ResetRequired")
"""Errors after which no answer is to be expected from that GPU any more."""


def visible(device: str) -> str | None:
    """The entry of CUDA_VISIBLE_DEVICES that ``device`` means, or the device's own number where that is not set."""
    number = int(device.partition(":")[2] or 0)
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is None:
        return str(number) if number else None
    entries = shown.split(",")
    return entries[number] if number < len(entries) else ""


class Nvml:
    """An NVML session. ``reason`` says why there is none where `available` is False; ``lost`` that a GPU fell off."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.lost: str | None = None
        self._library: Any = None
        try:
            library = importlib.import_module("pynvml")
            library.nvmlInit()
        except Exception as error:
            self.reason = f"{type(error).__name__}: {error}"
        else:
            self._library = library

    @property
    def available(self) -> bool:
        return self._library is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the session; every later call gives None."""
        library, self._library = self._library, None
        if library is not None:
            try:
                library.nvmlShutdown()
            except Exception as error:  # it is over either way
                self.reason = self.reason or f"{type(error).__name__}: {error}"

    def call(self, name: str, *arguments: Any) -> Any:
        """What the function ``name`` of pynvml gives; None where it fails."""
        return self.ask(name, *arguments)[0]

    def ask(self, name: str, *arguments: Any) -> tuple[Any, str | None]:
        """The same with the reason of a failure."""
        if not self.available:
            return None, self.reason or "the session is closed"
        try:
            return getattr(self._library, name)(*arguments), None
        except Exception as error:  # every NVML error means the same here: not available
            problem = f"{name}: {error}"
            if type(error).__name__ in _LOST:
                self.lost = problem
            return None, problem

    def constant(self, name: str) -> Any:
        """A constant or a structure of pynvml; None where this version has none."""
        return getattr(self._library, name, None)

    def driver(self) -> str | None:
        """Version of the driver, e.g. '570.86.15'."""
        return text(self.call("nvmlSystemGetDriverVersion"))

    def devices(self) -> list[GpuDevice]:
        """All GPUs that NVML shows; empty where it is not available."""
        handles = (
            (index, self._handle(index))
            for index in range(count(self.call("nvmlDeviceGetCount")) or 0)
        )
        return [
            Gpu(self, handle, index).described() for index, handle in handles if handle is not None
        ]

    def gpu(self, visible: str | None) -> Gpu | None:
        """The GPU that CUDA calls 0, given ``visible``, the value of CUDA_VISIBLE_DEVICES; None where there is none.

        A number is taken for NVML's own (bus order, which CUDA shares among equal GPUs). A GPU that is split (MIG)
        stands for its first instance, which is what CUDA shows of it; 'MIG-...' names an instance by its uuid.
        """
        first = None if visible is None else visible.split(",")[0].strip()
        if first is not None and first.startswith("MIG-"):
            handle = self.call("nvmlDeviceGetHandleByUUID", first)
            return None if handle is None else self._instance(handle)
        for index in range(count(self.call("nvmlDeviceGetCount")) or 0):
            handle = self._handle(index)
            if handle is None:
                continue
            by_uuid = first is not None and first.startswith("GPU-")
            if first in (None, str(index)) or (
                by_uuid and (self._uuid(handle) or "").startswith(first or "")
            ):
                return self._first_instance(handle, index)
        return None

    def _uuid(self, handle: Any) -> str | None:
        return text(self.call("nvmlDeviceGetUUID", handle))

    def _handle(self, index: int) -> Any:
        return self.call("nvmlDeviceGetHandleByIndex", index)

    def _first_instance(self, handle: Any, index: int) -> Gpu:
        mode = self.call("nvmlDeviceGetMigMode", handle)
        if mode and mode[0]:
            for number in range(count(self.call("nvmlDeviceGetMaxMigDeviceCount", handle)) or 0):
                instance = self.call("nvmlDeviceGetMigDeviceHandleByIndex", handle, number)
                if instance is not None:
                    return Gpu(self, instance, index, parent=handle)
        return Gpu(self, handle, index)

    def _instance(self, handle: Any) -> Gpu:
        parent = self.call("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", handle)
        index = None if parent is None else count(self.call("nvmlDeviceGetIndex", parent))
        return Gpu(self, handle, index, parent=parent, split=True)
