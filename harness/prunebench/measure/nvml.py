"""A thin, guarded layer over NVML (module `pynvml` of the distribution nvidia-ml-py).

Every call gives a value or None, "not available": no library, no driver, no permission, a call that the GPU does not
support, a field that NVML leaves empty. Nothing here raises, and nothing here imports torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")

_NOT_AVAILABLE = 1 << 63
"""NVML writes 'value not available' as all ones; bindings differ in whether they turn that into None."""


@dataclass(frozen=True)
class GpuDevice:
    """One GPU as NVML numbers it: physical order, blind to CUDA_VISIBLE_DEVICES."""

    index: int
    name: str | None
    uuid: str | None
    total_bytes: int | None


class Nvml:
    """An NVML session. ``reason`` says why there is none where `available` is False."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._library: Any = None
        self._handles: dict[int, Any] = {}
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
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the session; every later call gives None."""
        library, self._library = self._library, None
        self._handles.clear()
        if library is not None:
            _guarded(library.nvmlShutdown)

    def driver(self) -> str | None:
        """Version of the driver, e.g. '570.86.15'."""
        return _text(self._call("nvmlSystemGetDriverVersion"))

    def devices(self) -> list[GpuDevice]:
        """All GPUs that NVML shows; empty where it is not available."""
        count = _count(self._call("nvmlDeviceGetCount"))
        found = []
        for index in range(count or 0):
            handle = self._handle(index)
            if handle is None:
                continue
            memory = self._call("nvmlDeviceGetMemoryInfo", handle)
            found.append(
                GpuDevice(
                    index=index,
                    name=_text(self._call("nvmlDeviceGetName", handle)),
                    uuid=_text(self._call("nvmlDeviceGetUUID", handle)),
                    total_bytes=_count(getattr(memory, "total", None)),
                )
            )
        return found

    def visible_index(self, visible: str | None) -> int | None:
        """The GPU that CUDA calls 0, given ``visible``, the value of CUDA_VISIBLE_DEVICES; None where there is none.

        A number is taken for NVML's own (bus order, which CUDA shares among equal GPUs); a MIG slice is not found.
        """
        known = self.devices()
        if visible is None:
            return known[0].index if known else None
        first = visible.split(",")[0].strip()
        for device in known:
            if first == str(device.index) or (first.startswith("GPU-") and (device.uuid or "").startswith(first)):
                return device.index
        return None

    def device_memory(self, index: int) -> int | None:
        """Bytes in use on the whole GPU, by every process and the driver."""
        handle = self._handle(index)
        memory = None if handle is None else self._call("nvmlDeviceGetMemoryInfo", handle)
        return _count(getattr(memory, "used", None))

    def process_memory(self, index: int, pid: int) -> int | None:
        """Bytes that one process holds on the GPU.

        None also where NVML does not list the process: it lists pids of the host, which a container does not know.
        """
        handle = self._handle(index)
        if handle is None:
            return None
        used: list[int] = []
        for query in ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses"):
            listed = [_count(entry.usedGpuMemory) for entry in self._call(query, handle) or () if entry.pid == pid]
            known = [value for value in listed if value is not None]
            if known:  # several entries: one for each MIG instance
                used.append(sum(known))
        return max(used, default=None)  # a process that computes and draws stands in both lists

    def _handle(self, index: int) -> Any:
        if index not in self._handles:
            handle = self._call("nvmlDeviceGetHandleByIndex", index)
            if handle is None:
                return None
            self._handles[index] = handle
        return self._handles[index]

    def _call(self, name: str, *arguments: Any) -> Any:
        if self._library is None:
            return None
        return _guarded(lambda: getattr(self._library, name)(*arguments))


def _guarded(call: Callable[[], T]) -> T | None:
    try:
        return call()
    except Exception:  # every NVML error means the same here: not available
        return None


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):  # older bindings
        return value.decode(errors="replace")
    return value if isinstance(value, str) else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 <= value < _NOT_AVAILABLE else None
