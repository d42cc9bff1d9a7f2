"""What the devices said, for people: memory, loading, energy, and who else was using the machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prunebench_report.text import MISSING, clean, count, number, percent, seconds, size

if TYPE_CHECKING:
    from prunebench.record.devices import Contention, GpuSharing
    from prunebench.record.record import Record

Facts = list[tuple[str, str]]

BUSY = 0.1
"""A share of the CPU that others took while we timed; above it the times are not those of a quiet machine."""
TIMED = ("latency", "profile", "breakdown", "energy", "bandwidth")
_OCCUPIED_BYTES = 1 << 30
_OCCUPIED_SHARE = 0.1
"""On a GPU whose processes cannot be told apart, more than this before the cell began is worth a word."""


def memory(record: Record) -> dict[str, Any] | None:
    """Facts and peaks by phase; None where the record has no memory."""
    found = record.memory
    if found is None:
        return None
    facts: Facts = [
        ("Source", f"{found.source}, every {seconds(found.interval_s)}"),
        ("Before the model", size(found.baseline_rss_bytes)),
        ("Peak resident set", size(found.peak_rss_bytes)),
        ("Unique set after measuring", size(found.uss_bytes)),
    ]
    if gpu := found.gpu:
        facts += [
            ("GPU peak, device (NVML)", size(gpu.nvml_device_bytes)),
            ("GPU peak, process (NVML)", size(gpu.nvml_process_bytes)),
            ("GPU peak, allocated", size(gpu.allocated_bytes)),
            ("GPU peak, reserved", size(gpu.reserved_bytes)),
        ]
    if (cost := record.cost) and cost.peak_gpu_bytes is not None:
        facts.append(
            (
                "GPU peak while pruning",
                f"{size(cost.peak_gpu_bytes)} ({cost.peak_gpu_source or MISSING})",
            )
        )
    if found.problem:
        facts.append(("Sampling", found.problem))
    if contention := record.contention:
        facts += [*_sharing(contention.gpu), *_taken(contention)]
    return {"facts": facts, "phases": [(one.phase, _phase(one)) for one in found.phases]}


def _phase(one: Any) -> str:
    parts = [size(one.peak_rss_bytes)]
    if one.uss_bytes is not None:
        parts.append(f"{size(one.uss_bytes)} unique at its end")
    if gpu := one.gpu:
        used = (
            ("allocated", gpu.allocated_bytes),
            ("process", gpu.nvml_process_bytes),
            ("device", gpu.nvml_device_bytes),
        )
        parts += [f"GPU {size(value)} {name}" for name, value in used if value is not None][:1]
    return ", ".join(parts)


def _sharing(gpu: GpuSharing | None) -> Facts:
    if gpu is None:
        return []
    who = f" (pids {', '.join(map(str, gpu.pids))})" if gpu.pids else ""
    when = f", during {', '.join(gpu.phases)}" if gpu.phases else ""
    facts = [("Others on the GPU", f"{gpu.note}{who}{when}")]
    if gpu.memory_before_bytes is not None or gpu.utilisation_before is not None:
        use = f"{size(gpu.memory_before_bytes)}, in use {percent(gpu.utilisation_before, 0)} of the time"
        facts.append(("GPU when the cell began", use))
    return facts


def _taken(contention: Contention) -> Facts:
    """CPU that others had in the phases that are timed."""
    if contention.cpu_reason:
        return [("CPU taken by others", f"not available: {contention.cpu_reason}")]
    timed = [one for one in contention.cpu if one.phase in TIMED]
    parts = [
        f"{percent(one.others_share, 0)} ({one.phase})"
        + (f", {percent(one.steal_share, 0)} by the hypervisor" if one.steal_share >= 0.005 else "")
        for one in timed
    ]
    return [("CPU taken by others", "; ".join(parts))] if parts else []


def loading(record: Record) -> Facts:
    """The way of the weights from the disk to the device."""
    if record.io is None:
        return []
    load = record.io.load
    facts = [("Loading", _rate(load.bytes, load.seconds))]
    if load.host_s is not None and load.device_s is not None:
        facts.append(("Files to host memory", _rate(load.bytes, load.host_s)))
        facts.append(("Host memory to device", _rate(load.device_bytes, load.device_s)))
    if pcie := load.pcie:
        rates = f"mean {_speed(pcie.rx_mean_bytes_per_s)}, peak {_speed(pcie.rx_peak_bytes_per_s)}"
        facts.append(
            ("PCIe to the GPU", f"{rates} over {count(pcie.samples)} windows of 20 ms (NVML)")
        )
        facts.append(("PCIe from the GPU", f"mean {_speed(pcie.tx_mean_bytes_per_s)}"))
        link = f"generation {_plain(pcie.generation)} of {_plain(pcie.generation_limit)}"
        facts.append(
            ("PCIe link", f"{link}, {_plain(pcie.width)} of {_plain(pcie.width_limit)} lanes")
        )
    return [
        *facts,
        ("Read from the disk", size(load.disk_read_bytes)),
        ("Page cache", load.cache or MISSING),
    ]


def _rate(amount: int | None, time: float) -> str:
    rate = f", {size(amount / time)}/s" if amount is not None and time > 0 else ""
    return f"{size(amount)} in {seconds(time)}{rate}"


def _speed(value: float | None) -> str:
    return MISSING if value is None else f"{size(value)}/s"


def _plain(value: int | None) -> str:
    return MISSING if value is None else str(value)


def energy(record: Record) -> Facts:
    """Joules with their source, or why there are none."""
    found = record.energy
    if found is None:
        return []
    if found.source is None:
        return [("Energy", f"not available: {found.reason or 'no counter'}")]
    facts = [
        ("Per generated token", _joules(found.joules_per_token)),
        ("Per prompt", _joules(found.joules_per_prompt)),
        ("Power, generation phase", _watts(found.generation_w)),
        ("Power, prompt phase", _watts(found.prompt_w)),
        ("Power while waiting", f"{_watts(found.idle_w)}, not subtracted"),
        ("Source", found.source),
        (
            "Measured for",
            f"{seconds(found.prompt_s)} of prompts, {seconds(found.generation_s)} of generation",
        ),
    ]
    if found.prompt is not None:
        shape = f"prompt {found.prompt}, {_plain(found.new_tokens)} new tokens, batch {_plain(found.batch_size)}"
        facts.append(("Shape", shape))
    if found.reason:
        facts.append(("Not available", found.reason))
    return facts


def _joules(value: float | None) -> str:
    if value is None:
        return MISSING
    return f"{number(value)} J" if value >= 1 else f"{number(1000 * value)} mJ"


def _watts(value: float | None) -> str:
    return MISSING if value is None else f"{number(value)} W"


def warnings(records: Sequence[Record], names: dict[str, str]) -> list[str]:
    """Cells that had to share the machine, one sentence a kind; ``names`` by cell id."""
    shared, doubtful, busy, broken, flagged = [], [], [], [], []
    top = 0.0
    for record in records:
        name = names.get(record.id, record.id)
        if record.flags:
            flagged.append(name)
        if record.memory and record.memory.problem:
            broken.append(f"{name} ({clean(record.memory.problem)})")
        if (contention := record.contention) is None:
            continue
        gpu = contention.gpu
        if gpu and gpu.foreign:
            shared.append(name)
        elif gpu and gpu.foreign is None and _occupied(gpu):
            doubtful.append(name)
        taken = max(
            (one.others_share + one.steal_share for one in contention.cpu if one.phase in TIMED),
            default=0.0,
        )
        if taken > BUSY:
            busy.append(name)
            top = max(top, taken)
    found = []
    if shared:
        found.append(
            f"Other processes were on the GPU: times and device memory of {_listed(shared)} shared it."
        )
    if doubtful:
        found.append(
            f"The GPU was in use before {_listed(doubtful)} began, by whom cannot be told: times may have shared it."
        )
    if busy:
        found.append(
            f"The CPU was busy with others while timing {_listed(busy)}: they took up to {percent(top, 0)} of its cores."
        )
    if flagged:
        found.append(
            f"Global state was changed, or processes were left running, in {_listed(flagged)}: it was put back before "
            "measuring where that was possible. The details of the cells say what."
        )
    if broken:
        found.append(f"Memory was not sampled to the end in {_listed(broken)}.")
    return found


def _occupied(gpu: GpuSharing) -> bool:
    return (gpu.memory_before_bytes or 0) > _OCCUPIED_BYTES or (
        gpu.utilisation_before or 0.0
    ) > _OCCUPIED_SHARE


def _listed(names: Sequence[str], most: int = 4) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more cells"
