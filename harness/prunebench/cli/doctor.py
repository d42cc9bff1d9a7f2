"""`prunebench doctor`: what is here, and what of it can be measured."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click

HUB = "https://huggingface.co"
LIMIT_S = 3.0


class Finding(NamedTuple):
    """One thing that was looked at: 'ok' or 'no' (not available, and ``text`` says why)."""

    topic: str
    name: str
    status: str
    text: str


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@click.option("--offline", is_flag=True, help="Do not try to reach the hub.")
def command(*, as_json: bool, offline: bool) -> None:
    """Say which hardware and versions are here, where the caches lie, and what a run will and will not measure, and why.

    Nothing is changed. The hub gets one request, which ends after 3 s.
    """
    found = [*_machine(), *_measured(), *_caches(), *_plugins(), *([] if offline else [_hub()])]
    if as_json:
        click.echo(json.dumps([finding._asdict() for finding in found], indent=1))
        return
    topic = ""
    for finding in found:
        if finding.topic != topic:
            topic = finding.topic
            click.echo(f"{topic}:")
        click.echo(f"  {finding.status:<3} {finding.name:<18} {finding.text}".rstrip())


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
        yield Finding(
            "machine", "GPU", "ok", f"{gpu['name']}, {size}, driver {facts['gpu_driver']}"
        )
    usable = torch.cuda.is_available()
    yield Finding(
        "machine",
        "CUDA",
        "ok" if usable else "no",
        f"{torch.version.cuda}" if usable else "torch sees no GPU",
    )
    for name in ("prunebench", "python", "torch", "transformers", "lm-eval", "datasets", "ray"):
        yield Finding("versions", name, *_version(name, facts))


def _version(name: str, facts: dict[str, Any]) -> tuple[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return "ok", str(facts.get(name) or version(name))
    except PackageNotFoundError:
        extra = {
            "datasets": "; corpora on the hub need it: pip install 'prunebench[hub]'",
            "ray": "; runs over several machines need it: pip install 'prunebench[ray]'",
        }
        return "no", f"not installed{extra.get(name, '')}"


def _measured() -> Iterator[Finding]:
    import torch

    from prunebench.measure.devices.energy import EnergyMeter
    from prunebench.measure.devices.nvml import Nvml

    always = "perplexity, tasks, latency, throughput, sizes, resident memory by phase, loading"
    yield Finding("measured", "on any machine", "ok", always)
    with Nvml() as nvml:
        reason = nvml.reason if not nvml.available else None
    yield _either(
        "GPU memory, sharing",
        None if torch.cuda.is_available() else "torch sees no GPU",
        "allocator and NVML",
    )
    yield _either("NVML", reason, "power, clocks, PCIe and processes of the GPU")
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        with EnergyMeter(device) as meter:
            yield _either(
                f"energy of the {'GPU' if device == 'cuda' else 'CPU'}",
                meter.reason,
                meter.source or "",
            )
    read = Path("/proc/self/io")
    yield _either(
        "bytes from disk", None if os.access(read, os.R_OK) else f"{read} cannot be read", str(read)
    )
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    busy = load is not None and load > 0.5
    text = (
        "not available"
        if load is None
        else f"load average {load:.1f}" + (", others will disturb timings" if busy else "")
    )
    yield Finding("measured", "quiet machine", "no" if busy or load is None else "ok", text)


def _either(name: str, reason: str | None, source: str) -> Finding:
    return Finding("measured", name, "no" if reason else "ok", reason or source)


def _caches() -> Iterator[Finding]:
    from prunebench.model.cache import cache_dir

    hub = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    for name, folder in (("prunebench", cache_dir()), ("Hugging Face", hub)):
        place = folder
        while not place.exists():
            place = place.parent
        writable = os.access(place, os.W_OK)
        free = os.statvfs(place)
        text = f"{folder}, {free.f_bavail * free.f_frsize / 1e9:.0f} GB free"
        yield Finding(
            "caches",
            name,
            "ok" if writable else "no",
            text + ("" if writable else ", cannot be written"),
        )


def _plugins() -> Iterator[Finding]:
    from prunebench.plugin import API_VERSION
    from prunebench.plugin.host import load_plugins

    registry = load_plugins()
    kinds: dict[str, int] = {}
    for entry in registry.entries():
        kinds[entry.kind] = kinds.get(entry.kind, 0) + 1
    counts = ", ".join(f"{kind} {number}" for kind, number in kinds.items())
    yield Finding("plugins", f"API {API_VERSION}", "ok", counts or "none")
    for problem in registry.problems:
        yield Finding(
            "plugins",
            problem.plugin,
            "no",
            f"{problem.distribution} {problem.version}: {problem.message}",
        )


def _hub() -> Finding:
    """One request in a thread of its own, since looking up a name has no limit."""
    import threading
    import urllib.request

    said: list[str | None] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(
                urllib.request.Request(HUB, method="HEAD"), timeout=LIMIT_S
            ).close()
            said.append(None)
        except Exception as error:
            said.append(f"{type(error).__name__}: {getattr(error, 'reason', None) or error}")

    begun = time.monotonic()
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(LIMIT_S)
    reason = said[0] if said else f"no answer within {LIMIT_S:g} s"
    way = "models and corpora in the caches, in wheels and in local files work all the same"
    if reason:
        return Finding("network", HUB, "no", f"{reason}; {way}")
    return Finding("network", HUB, "ok", f"answered in {time.monotonic() - begun:.1f} s")
