"""One card a cell: everything that its record holds, ready for the template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prunebench_report.data.table import Row, protocol
from prunebench_report.figures import sparklines as strips
from prunebench_report.figures.heatmap import heatmap
from prunebench_report.sections import devices, metrics, speed, tasks
from prunebench_report.sections import time_breakdown as where
from prunebench_report.sections.provenance import flatten, placement
from prunebench_report.text import (
    MISSING,
    count,
    number,
    percent,
    ranges,
    seconds,
    shorten,
    size,
    tail,
    times,
)

if TYPE_CHECKING:
    from prunebench.experiment.text import CalibrationSpec
    from prunebench.record.audit import Audit
    from prunebench.record.record import Record
    from prunebench.record.speed import Latency, LatencySamples, Ratio, Summary

Facts = list[tuple[str, str]]


def card(record: Record, row: Row, own: Mapping[str, str]) -> dict[str, Any]:
    """The view of one cell; ``own`` are the facts of its provenance that not all cells share."""
    return {
        "id": record.id,
        "name": row["name"],
        "status": record.status,
        "summary": _summary(row),
        "method": _method(record),
        "audit": _audit(record, record.audit) if record.audit else [],
        "heatmap": heatmap(record.audit) if record.audit else None,
        "quality": [
            _perplexity(row, index, one) for index, one in enumerate(_perplexities(record))
        ],
        "tasks": tasks.parts(record),
        "metrics": metrics.parts(record),
        "speed": [_latency(one, raw) for one, raw in speed.timed(record)],
        "memory": devices.memory(record),
        "timeline": strips.timeline(record.samples.memory if record.samples else None),
        "load": devices.loading(record),
        "energy": devices.energy(record),
        "floors": [strips.floor(one) for one in record.io.generation] if record.io else [],
        "dram": where.dram(record),
        "phases": strips.phases(record.cost.phases) if record.cost else [],
        "notes": _notes(record),
        "provenance": [(key, value) for key, value in own.items() if key != "command"],
        "command": command(record),
    }


def failure(record: Record, row: Row) -> dict[str, Any]:
    """What stands in the table of failures for a cell without a result."""
    error = record.error
    return {
        "id": record.id,
        "name": row["name"],
        "status": record.status,
        "phase": error.phase if error else MISSING,
        "type": error.type if error else MISSING,
        "message": shorten(error.message, 1000) if error else "the record says no more",
        "hint": error.hint if error else None,
        "peak": size(error.peak_rss_bytes) if error and error.peak_rss_bytes else None,
        "log": tail(error.log_tail) if error else "",
        "command": command(record),
    }


def brief(record: Record, row: Row) -> dict[str, str]:
    """A failure in a line, for the many of a large run."""
    error = record.error
    told = (
        f"{error.type} in {error.phase}: {shorten(error.message, 200)}"
        if error
        else "the record says no more"
    )
    return {"id": record.id, "name": row["name"], "status": record.status, "told": told}


def command(record: Record) -> str:
    """What runs this cell again."""
    if record.error and record.error.command:
        return record.error.command
    given = record.provenance.get("command")
    return (
        given
        if isinstance(given, str) and given
        else f"python -m prunebench.cell specs/{record.id}.json"
    )


def _summary(row: Row) -> str:
    """The line beside the name while the card is closed."""
    parts = []
    recovery = row.get(tasks.quality_key(row))
    if recovery is not None:
        parts.append(
            f"recovery {number(recovery)} %{' over tasks' if tasks.judged_by_tasks(row) else ''}"
        )
    if row.get("inter_token_speedup") is not None:
        parts.append(f"{times(row['inter_token_speedup'])} per token")
    if row.get("disk_bytes") is not None:
        parts.append(f"{size(row['disk_bytes'])} on disk")
    return ", ".join(parts) or str(row.get("error_type") or "")


def _method(record: Record) -> Facts:
    cell = record.cell
    method = cell.method
    facts: Facts = [
        ("Model", f"{cell.model.name}, {cell.model.dtype}"),
        ("Model source", cell.model.location),
    ]
    if pin := cell.model.sha256 or cell.model.revision:
        facts.append(("Model hash" if cell.model.sha256 else "Model revision", pin))
    facts.append(("Method", f"{method.name} ({method.distribution} {method.version})"))
    facts.append(("Options", _options(method.options)))
    if spread := cell.allocation:
        facts.append(("Allocation", f"{spread.name} ({spread.distribution} {spread.version})"))
        facts.append(("Allocation options", _options(spread.options)))
    reference = record.provenance.get("reference")
    if isinstance(reference, Mapping):
        where = [
            f"arXiv:{reference['arxiv']}" if reference.get("arxiv") else "",
            str(reference.get("code") or ""),
        ]
        facts.append(
            (
                "Reference",
                ", ".join(filter(None, [str(reference.get("title") or ""), *where])) or MISSING,
            )
        )
    if cell.calibration:
        facts.append(("Calibration", _windows(cell.calibration)))
    if record.cost and record.cost.calibration_sha256:
        facts.append(("Calibration hash", record.cost.calibration_sha256))
    if recovery := cell.recovery:
        facts.append(("Recovery", f"{recovery.name} ({recovery.distribution} {recovery.version})"))
        facts += [
            ("Recovery options", _options(recovery.options)),
            ("Recovery text", _windows(recovery.data)),
        ]
        if (cost := record.cost) and cost.recover_s is not None:
            trained = (
                "" if cost.recover_tokens is None else f", {count(cost.recover_tokens)} tokens seen"
            )
            facts.append(("Recovery cost", f"{seconds(cost.recover_s)}{trained}"))
    facts += [("Seed", str(cell.seed)), ("Device", cell.device)]
    if cell.threads:
        facts.append(("Threads", str(cell.threads)))
    facts += [("Flagged", flag) for flag in record.flags]
    return facts


def _notes(record: Record) -> Facts:
    """What method and recovery say of themselves."""
    recovery = {"recovery": record.recovery_notes} if record.recovery_notes else {}
    return list(flatten({**record.method_notes, **recovery}).items())


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in flatten(options).items() if key) or "none"


def _windows(spec: CalibrationSpec) -> str:
    windows = f"{spec.windows} windows of {spec.length} tokens"
    return f"{spec.corpus.name} {spec.split}, {spec.sampler}, {windows}"


def _audit(record: Record, audit: Audit) -> Facts:
    measured = speed.said(record)
    facts: Facts = [
        ("Runs as", audit.form),
        ("Speed-up expected", f"{'yes' if audit.speedup_expected else 'no'}: {audit.note}"),
        *([("Speed-up found", measured)] if measured else []),
        *([("Placed", placed)] if (placed := placement(record)) else []),
        ("Zeros", f"{percent(audit.sparsity, 2)} of {count(audit.prunable)} prunable weights"),
        ("Zeros of the dense model", count(audit.zeros_dense)),
        ("Parameters", f"{count(audit.parameters)} of {count(audit.parameters_dense)}"),
        ("Removed", percent(audit.removed_share)),
        ("In memory", size(audit.memory_bytes)),
        ("On disk", size(audit.disk_bytes)),
        ("Layers", f"{len(audit.kept_layers)} of {audit.layers_dense}"),
    ]
    if audit.removed_layers:
        facts.append(("Removed layers", ", ".join(map(str, audit.removed_layers))))
    if audit.removed_blocks:
        facts.append(("Removed attentions and MLPs", ", ".join(audit.removed_blocks)))
    facts += _widths(audit)
    facts += [
        (
            f"Pattern {one.pattern}",
            f"{count(one.violations)} of {count(one.groups)} groups break it",
        )
        for one in audit.patterns
    ]
    return facts


def _widths(audit: Audit) -> Facts:
    """How wide the narrower sub-blocks are, layers of the same width together."""
    facts: Facts = []
    for kind, word in (("attention", "KV groups"), ("mlp", "MLP channels")):
        layers: dict[tuple[int, int], list[int]] = {}
        for one in audit.widths:
            if one.kind == kind:
                layers.setdefault((one.groups, one.groups_dense), []).append(one.layer)
        if layers:
            parts = [
                f"{now} of {before} in {ranges(where)}" for (now, before), where in layers.items()
            ]
            facts.append((word, "; ".join(parts)))
    if audit.hidden is not None and audit.hidden != audit.hidden_dense:
        facts.append(("Residual channels", f"{audit.hidden} of {audit.hidden_dense}"))
    return facts


def _perplexities(record: Record) -> list[Any]:
    return record.quality.perplexity if record.quality else []


def _perplexity(row: Row, index: int, one: Any) -> dict[str, str]:
    suffix = f"_{index + 1}" if index else ""
    low, high = row.get(f"perplexity_low{suffix}"), row.get(f"perplexity_high{suffix}")
    recovery = row.get(f"recovery_percent{suffix}")
    return {
        "value": number(row.get(f"perplexity{suffix}"), 4),
        "interval": f"{number(low, 4)} to {number(high, 4)}"
        if low is not None and high is not None
        else MISSING,
        "recovery": f"{number(recovery)} %" if recovery is not None else MISSING,
        "protocol": protocol(one),
        "tokens": one.tokens_sha256,
    }


def _latency(one: Latency, raw: LatencySamples | None) -> dict[str, Any]:
    rows = [
        _quantiles("First token", one.ttft_s, one.ttft_speedup),
        _quantiles("First token, dense between", one.dense_ttft_s, None),
        _quantiles("Between tokens", one.inter_token_s, one.inter_token_speedup),
        _quantiles("Between tokens, dense between", one.dense_inter_token_s, None),
    ]
    return {
        "shape": speed.shape(one),
        "rounds": f"{one.rounds} rounds after {one.warmup_rounds} warm-up",
        "tokens_per_s": number(one.tokens_per_s),
        "rows": [row for row in rows if row],
        "strip": strips.samples(raw),
        "facts": speed.facts(one),
    }


def _quantiles(name: str, summary: Summary | None, ratio: Ratio | None) -> list[str] | None:
    if summary is None:
        return None
    quantiles = (summary.minimum, summary.median, summary.p90, summary.p99, summary.maximum)
    against = f"{times(ratio.estimate)} ({ratio.low:.2f} to {ratio.high:.2f})" if ratio else ""
    return [name, *map(seconds, quantiles), count(summary.count), against]
