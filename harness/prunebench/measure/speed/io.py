"""I/O time: what loading read, and the bytes that one generated token must read."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from torch import nn

from prunebench.errors import PrunebenchError
from prunebench.measure.speed.kv_cache import kv_cache_bytes
from prunebench.model.coupling.trace import is_at, is_inside
from prunebench.model.experts import routed_experts
from prunebench.model.layers import find_layers
from prunebench.model.load import TransferTimes
from prunebench.model.mixture import top_k_of
from prunebench.record.io import GenerationIO, LoadIO
from prunebench.record.speed import Latency


def generation_io(model: Any, latency: Latency, bandwidth: float, source: str) -> GenerationIO:
    """The generation I/O floor at the shape of ``latency``: bytes per step / ``bandwidth``.

    ``bandwidth`` is in bytes per second, ``source`` says how it was measured. A step generates one
    token for each sequence of the batch: it reads the weights once for all of them, and each
    sequence's own KV cache.
    """
    weights = weight_bytes(model, latency.batch_size)
    cache = kv_cache_bytes(model, latency.prompt, latency.new_tokens, latency.batch_size)
    floor = (weights + cache) / bandwidth
    measured = latency.inter_token_s and latency.inter_token_s.median
    return GenerationIO(
        prompt=latency.prompt,
        new_tokens=latency.new_tokens,
        batch_size=latency.batch_size,
        weight_bytes=weights,
        kv_cache_bytes=cache,
        bandwidth_bytes_per_s=bandwidth,
        bandwidth_source=source,
        floor_s=floor,
        measured_s=measured,
        utilisation=floor / measured if measured else None,
    )


def weight_bytes(model: nn.Module, batch_size: int = 1) -> int:
    """Bytes of weights, as stored, that one generation step reads; a shared tensor counts once.

    A step reads one row of an embedding for each sequence, but all of a table that is also the
    head. Of the routed experts of a mixture it reads those that a token of the batch goes to: see
    `experts_read`.
    """
    rows: dict[nn.Parameter, int] = {}
    whole: dict[nn.Parameter, int] = {}
    shares = experts_read(model, batch_size)
    # Each parameter once, at the module that uses it: that decides how much of it is read.
    for module in text_modules(model):
        for parameter in module.parameters(recurse=False):
            size = parameter.numel() * parameter.element_size()
            if isinstance(module, nn.Embedding):
                rows[parameter] = min(
                    size, batch_size * parameter.shape[1] * parameter.element_size()
                )
            else:
                whole[parameter] = round(size * shares.get(parameter, 1.0))
    return sum(whole.values()) + sum(
        size for parameter, size in rows.items() if parameter not in whole
    )


def text_modules(model: Any) -> Iterator[nn.Module]:
    """The modules that a text goes through: not a vision tower beside the text decoder."""
    try:
        decoder, head = find_layers(model).decoder, model.get_output_embeddings()
    except (AttributeError, PrunebenchError):  # a plain module, or layers that nobody can tell
        decoder, head = "", None
    beside = decoder.rpartition(".")[0]
    for path, module in model.named_modules():
        if not beside or module is head or is_at(path, decoder) or not is_inside(path, beside):
            yield module


def experts_read(model: Any, batch_size: int = 1) -> dict[nn.Parameter, float]:
    """The share of each routed expert's parameters that one generation step reads.

    One token reads top k of n experts. A batch reads n * (1 - (1 - k / n)^batch) of them on
    average, if its tokens choose independently of each other and no expert is chosen more often.
    """
    found: dict[nn.Parameter, float] = {}
    for count, parameters in routed_experts(model):
        missed = 1 - min(top_k_of(model), count) / count  # by one token
        found |= dict.fromkeys(parameters, 1 - missed**batch_size)
    return found


def load_io(
    weight_file_bytes: int,
    seconds: float,
    disk_read_bytes: int | None,
    *,
    transfers: TransferTimes | None = None,
    disturbed: str | None = None,
) -> LoadIO:
    """What loading read. ``disk_read_bytes`` is how much `disk_read_bytes()` grew meanwhile.

    ``transfers`` are the times to the host and to the device, if they were taken apart;
    ``disturbed`` says what else used the machine, and then there is no time. The page cache counts
    as warm if at most a tenth of the file came from the disk, as cold from nine tenths on.
    """
    cache: Literal["cold", "warm", "mixed"] | None = None
    if disk_read_bytes is not None and weight_file_bytes > 0:
        share = disk_read_bytes / weight_file_bytes
        cache = "warm" if share <= 0.1 else "cold" if share >= 0.9 else "mixed"
    apart: dict[str, Any] = asdict(transfers) if transfers else {}
    if disturbed is not None:
        apart |= {"host_s": None, "device_s": None}
    return LoadIO(
        bytes=weight_file_bytes,
        seconds=None if disturbed else seconds,
        not_measurable=disturbed,
        disk_read_bytes=disk_read_bytes,
        cache=cache,
        **apart,
    )


def disk_read_bytes(path: Path = Path("/proc/self/io")) -> int | None:
    """Bytes that the block devices read for this process; None if the kernel does not tell."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        for line in path.read_text(encoding="ascii").splitlines():
            key, _, value = line.partition(":")
            if key == "read_bytes":
                return int(value)
    except (OSError, ValueError):
        return None
    return None
