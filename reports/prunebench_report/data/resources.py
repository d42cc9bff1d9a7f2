"""Size, memory, energy, cost and the time breakdown of a cell, as columns of the table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunebench_report.data.columns import Row

if TYPE_CHECKING:
    from prunebench.record.audit import Audit
    from prunebench.record.devices import Contention
    from prunebench.record.record import Record

TIMED = ("latency", "profile", "breakdown", "energy", "bandwidth")
"""Phases whose result is a time: others that use the CPU meanwhile falsify it."""


def size_columns(record: Record, dense: Record | None) -> Row:
    """What the audit counted on the pruned model."""
    audit, other = record.audit, dense.audit if dense else None
    if audit is None:
        return {}
    return {
        "sparsity": audit.sparsity,
        "sparsity_of_experts": audit.experts.sparsity if audit.experts else None,
        "sparsity_without_experts": audit.experts.sparsity_without if audit.experts else None,
        "removed_share": audit.removed_share,
        "zeros": audit.zeros,
        "zeros_dense": audit.zeros_dense,
        "parameters": audit.parameters,
        "experts": audit.experts.per_layer if audit.experts else None,
        "layers": len(audit.kept_layers),
        "layers_removed": len(audit.removed_layers),
        "memory_bytes": audit.memory_bytes,
        "disk_bytes": audit.disk_bytes,
        "parameters_ratio": _ratio(audit.parameters, audit.parameters_dense),
        "memory_ratio": _ratio(audit.memory_bytes, other.memory_bytes if other else None),
        "disk_ratio": _ratio(audit.disk_bytes, other.disk_bytes if other else None),
        "form": audit.form,
        "granularity": granularity(audit),
        "pattern": pattern(audit) if audit.zeros > audit.zeros_dense else None,
        "speedup_expected": audit.speedup_expected,
    }


def granularity(audit: Audit) -> str:
    """What was pruned, by counting: 'layers', 'blocks', 'width', 'experts', 'n:m', ... or 'none'."""
    experts = audit.experts
    parts = [
        ("layers", bool(audit.removed_layers)),
        ("blocks", bool(audit.removed_blocks)),
        ("width", bool(audit.widths) or audit.hidden != audit.hidden_dense),
        ("experts", experts is not None and experts.fewer),
        # Some dense models have zeros of their own; only more of them are pruning.
        ("n:m" if pattern(audit) else "unstructured", audit.zeros > audit.zeros_dense),
    ]
    return ", ".join(name for name, there in parts if there) or "none"


def pattern(audit: Audit) -> str | None:
    """The N:M pattern that no group breaks; the one with the smallest groups if there are several.

    A model without groups has no pattern.
    """
    kept = [one.pattern for one in audit.patterns if one.groups and not one.violations]
    # 2:4 zeros are 4:8 zeros as well.
    return min(kept, key=lambda one: int(one.partition(":")[2]), default=None)


def memory_columns(record: Record, dense: Record | None) -> Row:
    memory = record.memory
    if memory is None:
        return {}
    other = dense.memory if dense else None
    row: Row = {
        "peak_rss_bytes": memory.peak_rss_bytes,
        "uss_bytes": memory.uss_bytes,
        "peak_rss_ratio": _ratio(memory.peak_rss_bytes, other.peak_rss_bytes if other else None),
    }
    if gpu := memory.gpu:
        # NVML sees the whole process; torch's counters miss what other libraries allocate.
        peaks = (gpu.nvml_process_bytes, gpu.reserved_bytes, gpu.allocated_bytes)
        row["peak_gpu_bytes"] = next((peak for peak in peaks if peak is not None), None)
    # In the phase 'generate' no dense model is loaded beside the pruned one.
    alone = (one.gpu for one in memory.phases if one.phase == "generate" and one.gpu)
    generating = next(alone, None)
    row["generate_gpu_bytes"] = generating and generating.allocated_bytes
    return row


def _ratio(value: int | None, reference: int | None) -> float | None:
    return value / reference if value is not None and reference else None


def cost_columns(record: Record) -> Row:
    """What loading, pruning and recovering took."""
    row: Row = {}
    if record.io:
        load = record.io.load
        row |= {
            "load_s": load.seconds,
            "load_host_s": load.host_s,
            "load_device_s": load.device_s,
            "load_bytes": load.bytes,
            "load_cache": load.cache,
        }
    if cost := record.cost:
        row |= {
            "prune_s": cost.prune_s,
            "calibration_tokens": cost.calibration_tokens,
            "calibration_sha256": cost.calibration_sha256,
            "prune_peak_rss_bytes": cost.peak_rss_bytes,
            "prune_peak_gpu_bytes": cost.peak_gpu_bytes,
            "recover_s": cost.recover_s,
            "recover_tokens": cost.recover_tokens,
            "recover_sha256": cost.recover_sha256,
            "total_s": cost.total_s,
        }
    return row


def device_columns(record: Record, dense: Record | None) -> Row:
    """Energy, DRAM traffic, and who else used the machine."""
    row: Row = {}
    if record.speed and record.speed.dram:
        row["dram_utilisation"] = record.speed.dram.utilisation
    if energy := record.energy:
        row |= {
            "joules_per_token": energy.joules_per_token,
            "joules_per_prompt": energy.joules_per_prompt,
            "idle_w": energy.idle_w,
            "energy_source": energy.source or f"not available: {energy.reason}",
        }
        other = dense.energy if dense else None
        # Counters cover different parts of the machine, so only the same one may be compared.
        if other and other.source == energy.source:
            joules, reference = energy.joules_per_token, other.joules_per_token
            row["joules_ratio"] = joules / reference if joules and reference else None
    if contention := record.contention:
        row["gpu_shared"] = contention.gpu and contention.gpu.foreign
        row["cpu_others_share"] = cpu_taken(contention)
    return row


def cpu_taken(contention: Contention) -> float | None:
    """The largest share of the CPU that others and the hypervisor took in a timed phase."""
    shares = [one.others_share + one.steal_share for one in contention.cpu if one.phase in TIMED]
    return max(shares, default=None)


def breakdown_columns(record: Record) -> Row:
    """Time and bytes by part of the model; empty if they were not measured."""
    split = record.speed.breakdown if record.speed else None
    if split is None:
        return {}
    return {
        f"{part.part}_{key}": getattr(part, key)
        for part in split.parts
        for key in ("prompt_s", "token_s", "token_bytes")
    }
