"""`prunebench doctor`: what this machine has, and what can be measured on it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import click

from prunebench.cli.terminal import say, tell

HUB = "https://huggingface.co"
LIMIT_S = 3.0
BUSY_LOAD = 0.5
"""A load average above this means that other processes would disturb timings."""
EXTRAS = {
    "datasets": "; corpora on the hub need it: pip install 'prunebench[hub]'",
    "ray": "; runs over several machines need it: pip install 'prunebench[ray]'",
}


class Finding(NamedTuple):
    """One thing that was looked at."""

    topic: str
    name: str
    status: Literal["ok", "no"]
    """'no' is not available; ``text`` says why."""
    text: str


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--offline", is_flag=True, help="Do not try to reach the hub.")
def command(*, as_json: bool, offline: bool) -> None:
    """Show hardware, versions and caches, and what a run can measure here, or why it cannot.

    Nothing is changed. The hub gets one request, which is given up after 3 s.
    """
    found = [*_machine(), *_measured(), *_caches(), *_plugins(), *([] if offline else [_hub()])]
    if as_json:
        say(json.dumps([finding._asdict() for finding in found], indent=1))
        return
    topic = ""
    for finding in found:
        if finding.topic != topic:
            topic = finding.topic
            say(f"{topic}:")
        tell(f"  {finding.status:<3} {finding.name:<18} {finding.text}".rstrip(), indent=25)


def _finding(topic: str, name: str, reason: str | None, text: str) -> Finding:
    """Not available if there is a ``reason``, else ``text``."""
    return Finding(topic, name, "no" if reason else "ok", reason or text)


def _machine() -> Iterator[Finding]:
    import torch

    from prunebench.measure.devices.provenance import machine

    facts = machine()
    cores = f"{facts['cpu_cores_usable'] or facts['cpu_cores_logical']} usable cores"
    yield Finding("machine", "processor", "ok", f"{facts['cpu'] or 'name not available'}, {cores}")
    yield Finding("machine", "memory", "ok", f"{facts['memory_bytes'] / 1e9:.1f} GB")
    for gpu in facts["gpus"]:
        size = (
            f"{gpu['memory_bytes'] / 1e9:.1f} GB" if gpu["memory_bytes"] else "size not available"
        )
        text = f"{gpu['name']}, {size}, driver {facts['gpu_driver']}"
        yield Finding("machine", "GPU", "ok", text)
    yield _finding("machine", "CUDA", _no_cuda(), str(torch.version.cuda))
    for name in ("prunebench", "python", "torch", "transformers", "lm-eval", "datasets", "ray"):
        yield _version(name, facts)


def _no_cuda() -> str | None:
    """Why CUDA cannot be used; None if it can."""
    import torch

    return None if torch.cuda.is_available() else "torch sees no GPU"


def _version(name: str, facts: dict[str, Any]) -> Finding:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return Finding("versions", name, "ok", str(facts.get(name) or version(name)))
    except PackageNotFoundError:
        return Finding("versions", name, "no", f"not installed{EXTRAS.get(name, '')}")


def _measured() -> Iterator[Finding]:
    from prunebench.measure.devices.energy import EnergyMeter
    from prunebench.measure.devices.nvml import Nvml

    always = "perplexity, tasks, latency, throughput, sizes, resident memory by phase, loading"
    yield Finding("measured", "on any machine", "ok", always)
    yield _finding("measured", "GPU memory, sharing", _no_cuda(), "allocator and NVML")
    # Opened as a run would open it: that it is installed does not mean that the driver answers.
    with Nvml() as nvml:
        reason = nvml.reason if not nvml.available else None
    yield _finding("measured", "NVML", reason, "power, clocks, PCIe and processes of the GPU")
    for device, name in (("cpu", "CPU"), *((("cuda", "GPU"),) if _no_cuda() is None else ())):
        with EnergyMeter(device) as meter:
            yield _finding("measured", f"energy of the {name}", meter.reason, meter.source or "")
    read = Path("/proc/self/io")
    reason = None if os.access(read, os.R_OK) else f"{read} cannot be read"
    yield _finding("measured", "bytes from disk", reason, str(read))
    yield _quiet()


def _quiet() -> Finding:
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    if load is None:
        return Finding("measured", "quiet machine", "no", "load average not available")
    text = f"load average {load:.1f}"
    if load > BUSY_LOAD:
        return Finding("measured", "quiet machine", "no", f"{text}, others will disturb timings")
    return Finding("measured", "quiet machine", "ok", text)


def _caches() -> Iterator[Finding]:
    from prunebench.model.cache import cache_dir

    hub = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    for name, folder in (("prunebench", cache_dir()), ("Hugging Face", hub)):
        # A cache is made when it is first used: until then its nearest parent counts.
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free = os.statvfs(there)
        text = f"{folder}, {free.f_bavail * free.f_frsize / 1e9:.0f} GB free"
        reason = None if os.access(there, os.W_OK) else f"{text}, cannot be written"
        yield _finding("caches", name, reason, text)


def _plugins() -> Iterator[Finding]:
    from prunebench.plugin import API_VERSION
    from prunebench.plugin.host import load_plugins

    registry = load_plugins()
    counts = ", ".join(f"{kind} {len(named)}" for kind, named in registry.items() if named)
    yield Finding("plugins", f"API {API_VERSION}", "ok", counts or "none")
    for problem in registry.problems:
        text = f"{problem.distribution} {problem.version}: {problem.message}"
        yield Finding("plugins", problem.plugin, "no", text)


def _hub() -> Finding:
    import threading
    import urllib.request

    answers: list[str | None] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(
                urllib.request.Request(HUB, method="HEAD"), timeout=LIMIT_S
            ).close()
            answers.append(None)
        except Exception as error:
            answers.append(f"{type(error).__name__}: {getattr(error, 'reason', None) or error}")

    begun = time.monotonic()
    # The timeout of urlopen does not cover looking up the name, so a thread is waited for instead.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(LIMIT_S)
    reason = answers[0] if answers else f"no answer within {LIMIT_S:g} s"
    if reason:
        reason += "; models and corpora in the caches, in wheels and in local files still work"
    return _finding("network", HUB, reason, f"answered in {time.monotonic() - begun:.1f} s")
