"""Why some of the numbers of a report must not be compared, one sentence for each reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from prunebench_report.data.machines import machines
from prunebench_report.data.resources import cpu_taken
from prunebench_report.data.speed import shape_of, stored_latencies
from prunebench_report.sections.provenance import slow_governor
from prunebench_report.text import clean, longer, percent

if TYPE_CHECKING:
    from prunebench.record.devices import GpuSharing
    from prunebench.record.record import Record
    from prunebench_report.data.report_input import ReportInput

# If dense is slower by more than this in another cell, milliseconds of two rows do not compare.
_DRIFT = 0.1
# If others took more than this share of the CPU, the times are not those of a quiet machine.
_BUSY = 0.1
_OCCUPIED_BYTES = 1 << 30
# Use of a GPU before the cell began that needs a word if its processes cannot be identified.
_OCCUPIED_SHARE = 0.1
_MOST_NAMES = 4


def section(given: ReportInput) -> list[str]:
    missing = not_run(given)
    return [*([missing] if missing else []), *before_comparing(given)]


def not_run(given: ReportInput) -> str | None:
    """That cells of the plan have no record; None if all have one."""
    total = len(given.plan.cells)
    missing = total - len(given.records) - len(given.damaged)
    # While the run goes on, missing cells are no fault.
    if not missing or given.running:
        return None
    return f"Not run: {missing} of {total} cells. The verdict covers the others."


def before_comparing(given: ReportInput) -> list[str]:
    """Everything else."""
    done = [record for record in given.records if record.status == "ok"]
    return [
        *_incomplete(given, done),
        *_unpaired(done),
        *_mixed_execution(done),
        *_drift(done),
        *_machines(given.records, done),
        *_moved_branches(done),
        *_shared_gpu(given),
        *_busy_cpu(given),
        *_missed(given),
        *_side_effects(given),
    ]


def _incomplete(given: ReportInput, done: Sequence[Record]) -> list[str]:
    found = []
    if len(given.gates) > 1:
        found.append(
            "The runs have different quality gates; this report uses the one of the first run."
        )
    if given.repeated:
        cells = f"{given.repeated} cell{'s are' if given.repeated > 1 else ' is'}"
        found.append(
            f"{cells} in several runs; this report has the first result of each. `prunebench "
            "compare A B` shows both beside each other."
        )
    found += [
        f"The record {one.path.name} cannot be used: {clean(one.reason)}." for one in given.damaged
    ]
    if done and not any(record.cell.method.name == "dense" for record in done):
        found.append("No dense cell finished, so recovery and speed-up are unknown.")
    return found


def _unpaired(done: Sequence[Record]) -> list[str]:
    """Cells whose speed-up compares two processes, with the reason if the cell recorded one."""
    apart = 0
    for record in done:
        timed = stored_latencies(record) if record.cell.method.name != "dense" else []
        apart += any(
            one.inter_token_speedup is None and not (one.unpaired or one.not_measurable)
            for one in timed
        )
    if not apart:
        return []
    return [
        (
            f"{apart} cell{'s were' if apart > 1 else ' was'} not timed in rounds interleaved with "
            "dense: the speed-up compares two processes and has no interval."
        )
    ]


def _mixed_execution(done: Sequence[Record]) -> list[str]:
    """Times in one table that were taken in different execution forms."""
    forms: dict[tuple[object, ...], list[str]] = {}
    reasons: dict[str, int] = {}
    for record in done:
        for one in stored_latencies(record):
            key = (record.cell.model.name, *shape_of(one))
            forms.setdefault(key, []).append(one.execution)
        explained = (one.unpaired for one in stored_latencies(record) if one.unpaired)
        if reason := next(explained, None):
            reasons[reason] = reasons.get(reason, 0) + 1
    found = []
    if mixed := [kinds for kinds in forms.values() if len(set(kinds)) > 1]:
        kinds = mixed[0]
        counts = ", ".join(f"{kinds.count(kind)} {clean(kind)}" for kind in dict.fromkeys(kinds))
        found.append(
            f"Cells of one model were timed in different execution forms ({counts}). Compare "
            "speed-ups, which are relative to dense in the same form, not the milliseconds of "
            "different rows."
        )
    found += [
        f"{count} cell{'s were' if count > 1 else ' was'} not timed beside dense: {clean(reason)}."
        for reason, count in reasons.items()
    ]
    return found


def _drift(done: Sequence[Record]) -> list[str]:
    """How much slower dense was in its slowest cell than in its fastest, over models and shapes."""
    # Dense is timed in its own cell and again between the rounds of every pruned one.
    medians: dict[tuple[object, ...], list[float]] = {}
    for record in done:
        is_dense = record.cell.method.name == "dense"
        for one in stored_latencies(record):
            dense = one.inter_token_s if is_dense else one.dense_inter_token_s
            if dense is not None and dense.median > 0:
                key = (record.cell.model.name, *shape_of(one), one.execution)
                medians.setdefault(key, []).append(dense.median)
    worst = max((max(several) / min(several) for several in medians.values()), default=1.0)
    if worst <= 1 + _DRIFT:
        return []
    return [
        (
            "The machine's own speed drifted: the dense model took up to "
            f"{longer(worst)} per token in some cells than in others. Compare "
            "speed-ups, which are paired, not the milliseconds of different rows."
        )
    ]


def _machines(records: Sequence[Record], done: Sequence[Record]) -> list[str]:
    found = []
    if governor := slow_governor(done):
        found.append(
            f"The CPU governor is '{clean(governor)}', so the clock may change between rounds."
        )
    if (several := len(machines(records))) > 1:
        found.append(
            f"Cells ran on {several} different machines: do not compare times between them."
        )
    return found


def _moved_branches(done: Sequence[Record]) -> list[str]:
    """Models and texts that were another commit of the hub in some cells than in others."""
    commits: dict[str, dict[str, None]] = {}
    for record in done:
        found = record.provenance.get("unpinned")
        for what, commit in found.items() if isinstance(found, Mapping) else ():
            commits.setdefault(str(what), {})[str(commit)] = None
        for task in record.quality.tasks if record.quality else ():
            if task.data_commit is not None:
                commits.setdefault(f"task {task.task}", {})[task.data_commit] = None
    return [
        f"The {clean(what)} was not the same in all cells, because no commit pins it: "
        f"{clean(', '.join(commit[:7] for commit in several))}. Do not compare these cells."
        for what, several in commits.items()
        if len(several) > 1
    ]


def _shared_gpu(given: ReportInput) -> list[str]:
    shared, doubtful = [], []
    for record in given.records:
        # `foreign` is None if the driver does not tell processes apart.
        gpu = record.contention.gpu if record.contention else None
        if gpu and gpu.foreign:
            shared.append(given.names[record.id])
        elif gpu and gpu.foreign is None and _occupied(gpu):
            doubtful.append(given.names[record.id])
    found = []
    if shared:
        found.append(
            "Other processes used the GPU, which affects times and GPU memory of "
            f"{_listed(shared)}."
        )
    if doubtful:
        found.append(
            f"Unknown processes used the GPU before {_listed(doubtful)} began: "
            "the times may be affected."
        )
    return found


def _occupied(gpu: GpuSharing) -> bool:
    memory, busy = gpu.memory_before_bytes or 0, gpu.utilisation_before or 0.0
    return memory > _OCCUPIED_BYTES or busy > _OCCUPIED_SHARE


def _busy_cpu(given: ReportInput) -> list[str]:
    busy = []
    for record in given.records:
        share = cpu_taken(record.contention) if record.contention else None
        if share is not None and share > _BUSY:
            busy.append((given.names[record.id], share))
    if not busy:
        return []
    most = percent(max(share for _, share in busy), 0)
    return [
        (
            f"Other processes took up to {most} of the CPU during the timing of "
            f"{_listed([name for name, _ in busy])}."
        )
    ]


def _missed(given: ReportInput) -> list[str]:
    return [
        f"{given.names[record.id]} is not what was asked for: {clean(record.audit.missed)}. It is in"
        " no comparison of the verdict."
        for record in given.records
        if record.audit and record.audit.missed
    ]


def _side_effects(given: ReportInput) -> list[str]:
    flagged = [given.names[record.id] for record in given.records if record.flags]
    broken = [
        f"{given.names[record.id]} ({clean(record.memory.problem)})"
        for record in given.records
        if record.memory and record.memory.problem
    ]
    found = []
    if flagged:
        found.append(
            f"A plugin left side effects behind or could not measure a figure in "
            f"{_listed(flagged)}. Side effects were undone before measuring if possible; 'Flagged' "
            "in the details of the cells says what happened."
        )
    if broken:
        found.append(f"Memory sampling stopped early in {_listed(broken)}.")
    return found


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMES])
    left = len(names) - _MOST_NAMES
    return shown if left <= 0 else f"{shown} and {left} more cells"
