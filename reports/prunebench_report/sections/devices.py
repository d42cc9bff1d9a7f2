"""Memory, loading, energy and shared use of the machine: facts for the card of one cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunebench_report.data.resources import TIMED
from prunebench_report.text import MISSING, Facts, count, number, percent, rate, seconds, size

if TYPE_CHECKING:
    from prunebench.record.devices import Contention, CpuLoad, GpuSharing, PcieTraffic
    from prunebench.record.memory import PhaseMemory
    from prunebench.record.record import Record

# CPU share of the hypervisor that does not round to 0 %.
_VISIBLE_STEAL = 0.005


def memory(record: Record) -> dict[str, Any] | None:
    """Facts and peaks by phase; None if the record has no memory."""
    found = record.memory
    if found is None:
        return None
    facts: Facts = [
        ("Source", f"{found.source}, every {seconds(found.interval_s)}"),
        ("Before the model", size(found.baseline_rss_bytes)),
        ("Peak resident set", size(found.peak_rss_bytes)),
        ("Unique set after the measurements", size(found.uss_bytes)),
    ]
    if gpu := found.gpu:
        facts += [
            ("GPU peak, device (NVML)", size(gpu.nvml_device_bytes)),
            ("GPU peak, process (NVML)", size(gpu.nvml_process_bytes)),
            ("GPU peak, allocated", size(gpu.allocated_bytes)),
            ("GPU peak, reserved", size(gpu.reserved_bytes)),
        ]
    if (cost := record.cost) and cost.peak_gpu_bytes is not None:
        source = cost.peak_gpu_source or MISSING
        facts.append(("GPU peak while pruning", f"{size(cost.peak_gpu_bytes)} ({source})"))
    if found.problem:
        facts.append(("Sampling", found.problem))
    if contention := record.contention:
        facts += [*_gpu_sharing(contention.gpu), *_cpu_sharing(contention)]
    return {"facts": facts, "phases": [(one.phase, _phase(one)) for one in found.phases]}


def _phase(one: PhaseMemory) -> str:
    parts = [size(one.peak_rss_bytes)]
    if one.uss_bytes is not None:
        parts.append(f"{size(one.uss_bytes)} unique at the end")
    if gpu := one.gpu:
        used = (
            ("allocated", gpu.allocated_bytes),
            ("process", gpu.nvml_process_bytes),
            ("device", gpu.nvml_device_bytes),
        )
        # The most specific figure that is known
        parts += [f"GPU {size(value)} {name}" for name, value in used if value is not None][:1]
    return ", ".join(parts)


def _gpu_sharing(gpu: GpuSharing | None) -> Facts:
    if gpu is None:
        return []
    who = f" (pids {', '.join(map(str, gpu.pids))})" if gpu.pids else ""
    when = f", during {', '.join(gpu.phases)}" if gpu.phases else ""
    facts = [("Other processes on the GPU", f"{gpu.note}{who}{when}")]
    if gpu.memory_before_bytes is not None or gpu.utilisation_before is not None:
        busy = percent(gpu.utilisation_before, 0)
        use = f"{size(gpu.memory_before_bytes)}, in use {busy} of the time"
        facts.append(("GPU when the cell began", use))
    return facts


def _cpu_sharing(contention: Contention) -> Facts:
    """CPU time that others had during the timed phases."""
    if contention.cpu_reason:
        return [("CPU used by others", f"not available: {contention.cpu_reason}")]
    parts = [_cpu_load(one) for one in contention.cpu if one.phase in TIMED]
    return [("CPU used by others", "; ".join(parts))] if parts else []


def _cpu_load(one: CpuLoad) -> str:
    text = percent(one.others_share, 0)
    if one.steal_share >= _VISIBLE_STEAL:
        text += f" and {percent(one.steal_share, 0)} by the hypervisor"
    return f"{text} in {one.phase} ({seconds(one.wall_s)})"


def loading(record: Record) -> Facts:
    """How the weights came from the disk to the device."""
    if record.io is None:
        return []
    load = record.io.load
    facts = [("Loading", _throughput(load.bytes, load.seconds))]
    if load.not_measurable:
        facts.append(("Loading time", f"not measurable: {load.not_measurable}"))
    # Some loaders read straight to the device, so the two steps cannot be timed apart.
    if load.host_s is not None and load.device_s is not None:
        facts.append(("Files to host memory", _throughput(load.bytes, load.host_s)))
        facts.append(("Host memory to device", _throughput(load.device_bytes, load.device_s)))
    if load.pcie:
        facts += _pcie(load.pcie)
    return [
        *facts,
        ("Read from the disk", size(load.disk_read_bytes)),
        ("Page cache", load.cache or MISSING),
    ]


def _pcie(traffic: PcieTraffic) -> Facts:
    received = f"mean {rate(traffic.rx_mean_bytes_per_s)}, peak {rate(traffic.rx_peak_bytes_per_s)}"
    sent = f"mean {rate(traffic.tx_mean_bytes_per_s)}, peak {rate(traffic.tx_peak_bytes_per_s)}"
    generation = f"generation {_plain(traffic.generation)} of {_plain(traffic.generation_limit)}"
    lanes = f"{_plain(traffic.width)} of {_plain(traffic.width_limit)} lanes"
    return [
        # NVML measures throughput over windows of 20 ms and does not count the bytes between them.
        (
            "PCIe to the GPU",
            f"{received} over {count(traffic.samples)} windows of 20 ms (NVML)",
        ),
        ("PCIe from the GPU", sent),
        ("PCIe link", f"{generation}, {lanes}"),
    ]


def _throughput(amount: int | None, time: float | None) -> str:
    if time is None:
        return size(amount)
    per_second = f", {rate(amount / time)}" if amount is not None and time > 0 else ""
    return f"{size(amount)} in {seconds(time)}{per_second}"


def _plain(value: int | None) -> str:
    return MISSING if value is None else str(value)


def energy(record: Record) -> Facts:
    """Joules and watts with their source, or why there are none."""
    found = record.energy
    if found is None:
        return []
    if found.source is None:
        return [("Energy", f"not available: {found.reason or 'no counter'}")]
    prompts, generation = seconds(found.prompt_s), seconds(found.generation_s)
    facts = [
        ("Per generated token", _joules(found.joules_per_token)),
        ("Per prompt", _joules(found.joules_per_prompt)),
        ("Power, generation phase", _watts(found.generation_w)),
        ("Power, prompt phase", _watts(found.prompt_w)),
        ("Idle power", f"{_watts(found.idle_w)}, not subtracted"),
        ("Source", found.source),
        ("Measured for", f"{prompts} of prompts, {generation} of generation"),
    ]
    if found.prompt is not None:
        new_tokens, batch = _plain(found.new_tokens), _plain(found.batch_size)
        shape = f"prompt {found.prompt}, {new_tokens} new tokens, batch {batch}"
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


def dram_traffic(record: Record) -> Facts:
    """Traffic of the GPU's memory during generation, if its counters were read."""
    found = record.speed.dram if record.speed else None
    if found is None:
        return []
    if found.utilisation is None:
        return [("DRAM traffic", f"not available: {found.reason or 'no counter'}")]
    peak = ""
    if found.peak_bytes_per_s is not None:
        peak = f" of {number(found.peak_bytes_per_s / 1e9)} GB/s"
    time = f"mean over {seconds(found.seconds)} (NVML GPM)"
    return [("DRAM traffic", f"{percent(found.utilisation, 0)}{peak}, {time}")]
