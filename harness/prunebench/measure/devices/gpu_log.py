"""Read the log of `gpu_watch`: other processes on the GPU, and PCIe traffic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from prunebench.record.devices import GpuSharing, PcieTraffic


class Listing(NamedTuple):
    """The processes on the GPU from ``time`` on.

    ``own`` of them belong to the watched tree, which has ``tree`` processes; ``others`` are the
    pids of the rest.
    """

    time: float
    own: int
    tree: int
    others: tuple[int, ...]


class Transfer(NamedTuple):
    """PCIe traffic at one moment, bytes per second."""

    time: float
    sent: float | None
    received: float | None


@dataclass
class GpuLog:
    """Times are `time.monotonic` seconds, sizes bytes, rates bytes per second."""

    listings: list[Listing] = field(default_factory=list)
    transfers: list[Transfer] = field(default_factory=list)
    links: list[tuple[int | None, ...]] = field(default_factory=list)
    memory_before: int | None = None
    utilisation_before: float | None = None
    seen: bool = False
    """Whether the GPU was read at all."""
    problems: list[str] = field(default_factory=list)


def read_log(lines: Sequence[str]) -> GpuLog:
    """The log in the sampler's output; skips other lines and half-written ones."""
    log = GpuLog()
    # The sampler may be killed in the middle of a line, so the last one may be half a line.
    for line in lines:
        kind, _, rest = line.partition(" ")
        try:
            _take(log, kind, rest)
        except (ValueError, IndexError):
            continue
    return log


def _take(log: GpuLog, kind: str, rest: str) -> None:
    fields = rest.split()
    match kind:
        case "first":
            log.memory_before = None if fields[1] == "-" else int(fields[1])
            log.utilisation_before = _number(fields[2])
            log.seen = True
        case "pids":
            others = tuple(int(one.partition(":")[0]) for one in fields[3:])
            log.listings.append(Listing(float(fields[0]), int(fields[1]), int(fields[2]), others))
        case "pcie":
            log.transfers.append(Transfer(float(fields[0]), _number(fields[1]), _number(fields[2])))
        case "link":
            generation, width, generation_limit, width_limit = (
                None if one == "-" else int(one) for one in fields
            )
            log.links.append((generation, width, generation_limit, width_limit))
        case "problem":
            log.problems.append(rest)


def sharing(log: GpuLog, spans: Sequence[tuple[str, float, float]]) -> GpuSharing | None:
    """Whether other processes used the GPU, and in which phases; None if no GPU was watched.

    ``spans`` are (phase, start, stop). NVML lists the host's pids, which in a container are not
    ours. If our own pid was never listed, the pids do not tell who is who: then only a list of more
    processes than we have proves that there are others.
    """
    if not log.seen:
        return None
    before = {
        "memory_before_bytes": log.memory_before,
        "utilisation_before": log.utilisation_before,
    }
    # Without a common numbering of processes, two of ours would look like one stranger.
    known = any(one.own for one in log.listings)
    found = [one for one in log.listings if (one.others if known else len(one.others) > one.tree)]
    if found:
        phases = _phases(log.listings, found, spans)
        pids = sorted({pid for one in found for pid in one.others}) if known else []
        note = (
            "other processes on the GPU"
            if known
            else "more processes on the GPU than this cell has"
        )
        return GpuSharing(foreign=True, pids=pids, phases=phases, note=note, **before)
    if known:
        return GpuSharing(
            foreign=False, note="only this cell's processes were listed on the GPU", **before
        )
    if any(one.others for one in log.listings):
        note = (
            "cannot tell: this cell's process is not among those that NVML lists; "
            "in a container it lists the host's pids"
        )
    else:
        note = "cannot tell: NVML lists no process on this GPU"
    return GpuSharing(foreign=None, note=note, **before)


def _phases(
    listings: Sequence[Listing], found: Sequence[Listing], spans: Sequence[tuple[str, float, float]]
) -> list[str]:
    """Names of the phases that overlap with one of the ``found`` listings."""
    # A listing is written when the set of processes changes, so it holds until the next one.
    ends = dict(zip(listings, [*(one.time for one in listings[1:]), float("inf")], strict=True))
    return list(
        dict.fromkeys(
            name
            for name, start, stop in spans
            if any(one.time < stop and ends[one] > start for one in found)
        )
    )


def pcie_traffic(log: GpuLog) -> PcieTraffic | None:
    """Mean and peak of the sampled traffic; None if no sample has a figure."""
    sent = [one.sent for one in log.transfers if one.sent is not None]
    received = [one.received for one in log.transfers if one.received is not None]
    if not sent and not received:
        return None
    # The highest value seen: a link that is idle falls back to a lower generation.
    generation, width, generation_limit, width_limit = (
        max((value for value in column if value is not None), default=None)
        for column in zip(*(log.links or [(None,) * 4]), strict=True)
    )
    return PcieTraffic(
        samples=max(len(sent), len(received)),
        rx_mean_bytes_per_s=sum(received) / len(received) if received else None,
        rx_peak_bytes_per_s=max(received, default=None),
        tx_mean_bytes_per_s=sum(sent) / len(sent) if sent else None,
        tx_peak_bytes_per_s=max(sent, default=None),
        generation=generation,
        width=width,
        generation_limit=generation_limit,
        width_limit=width_limit,
    )


def _number(field: str) -> float | None:
    return None if field == "-" else float(field)
