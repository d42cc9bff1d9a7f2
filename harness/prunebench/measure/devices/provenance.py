"""The machine and the software on which a record's numbers were measured.

Imports no torch. If torch is loaded already, its settings are part of the result.
"""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from prunebench.measure.devices.gpu_lookup import all_gpus
from prunebench.measure.devices.nvml import Nvml

_DISTRIBUTIONS = ("prunebench", "torch", "transformers", "numpy", "safetensors", "nvidia-ml-py")


def machine() -> dict[str, Any]:
    """Hardware, software and load as JSON values. Memory in bytes; None is "not available"."""
    return {
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cpu_cores_physical": psutil.cpu_count(logical=False),
        "cpu_cores_logical": psutil.cpu_count(logical=True),
        "cpu_cores_usable": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else None,
        "cpu_governor": _line(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "memory_bytes": psutil.virtual_memory().total,
        "load_average": [round(value, 2) for value in os.getloadavg()]
        if hasattr(os, "getloadavg")
        else None,
        "python": platform.python_version(),
        **{name: _version(name) for name in _DISTRIBUTIONS},
        "threads": None,
        **_torch(),
        **_gpus(),
    }


def cpu_model() -> str | None:
    """The processor's name, from /proc/cpuinfo or else from Python's `platform`."""
    try:
        for line in (
            Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        ):
            key, _, value = line.partition(":")
            if key.strip().lower() in {"model name", "hardware", "cpu model"} and value.strip():
                return value.strip()
    except OSError:
        pass
    return platform.processor() or None


def _torch() -> dict[str, Any]:
    # Looked up, not imported: only what the numbers were measured with is described.
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return {}
    return {
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda,
    }


def _gpus() -> dict[str, Any]:
    with Nvml() as nvml:
        return {
            "gpus": [
                {"name": device.name, "memory_bytes": device.total_bytes}
                for device in all_gpus(nvml)
            ],
            "gpu_driver": nvml.driver(),
            "nvml": "available" if nvml.available else f"not available ({nvml.reason})",
        }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _line(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None
