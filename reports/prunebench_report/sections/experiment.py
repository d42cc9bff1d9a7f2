"""What was done to make one model, and what the audit counted on it: facts for the cell's card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prunebench_report.sections.provenance import flatten, layer_locations
from prunebench_report.sections.speed import measured_speedup
from prunebench_report.text import (
    MISSING,
    Facts,
    count,
    layer_ranges,
    percent,
    seconds,
    size,
)

if TYPE_CHECKING:
    from prunebench.experiment.cell import Cell
    from prunebench.experiment.text import CalibrationSpec
    from prunebench.record.audit import Audit, ExpertsAudit
    from prunebench.record.record import Record

LONGEST_OPTION = 120
"""Characters of one option that the card shows."""


def experiment_facts(record: Record) -> Facts:
    """Model, method, allocation, calibration, recovery and where the cell ran."""
    cell = record.cell
    facts = [*_model(record), *_method(cell), *_reference(record)]
    if cell.calibration:
        facts.append(("Calibration", _windows(cell.calibration)))
    if record.cost and record.cost.calibration_sha256:
        facts.append(("Calibration hash", record.cost.calibration_sha256))
    facts += [*_recovery(record), ("Seed", str(cell.seed)), ("Device", cell.device)]
    if cell.threads:
        facts.append(("Threads", str(cell.threads)))
    return [*facts, *(("Flagged", flag) for flag in record.flags)]


def _model(record: Record) -> Facts:
    model = record.cell.model
    facts = [("Model", f"{model.name}, {model.dtype}"), ("Model source", model.location)]
    if pin := model.sha256 or model.revision:
        facts.append(("Model hash" if model.sha256 else "Model revision", pin))
    commit = record.provenance.get("model_revision")
    if isinstance(commit, str) and commit != pin:
        branch = model.revision or "main"
        facts.append(("Model commit", f"{commit}, what '{branch}' was when the cell ran"))
    return facts


def _method(cell: Cell) -> Facts:
    method, allocation = cell.method, cell.allocation
    facts = [
        ("Method", f"{method.name} ({method.distribution} {method.version})"),
        ("Options", _options(method.options)),
    ]
    if allocation:
        provider = f"{allocation.distribution} {allocation.version}"
        facts.append(("Allocation", f"{allocation.name} ({provider})"))
        facts.append(("Allocation options", _options(allocation.options)))
    return facts


def _reference(record: Record) -> Facts:
    """The paper and the code that the method names."""
    # Provenance is a free-form dict that a plugin fills in part.
    reference = record.provenance.get("reference")
    if not isinstance(reference, Mapping):
        return []
    parts = [
        str(reference.get("title") or ""),
        f"arXiv:{reference['arxiv']}" if reference.get("arxiv") else "",
        str(reference.get("code") or ""),
    ]
    return [("Reference", ", ".join(filter(None, parts)) or MISSING)]


def _recovery(record: Record) -> Facts:
    recovery, cost = record.cell.recovery, record.cost
    if recovery is None:
        return []
    facts = [
        ("Recovery", f"{recovery.name} ({recovery.distribution} {recovery.version})"),
        ("Recovery options", _options(recovery.options)),
        ("Recovery text", _windows(recovery.data)),
    ]
    if cost and cost.recover_s is not None:
        tokens = cost.recover_tokens
        seen = "" if tokens is None else f", {count(tokens)} tokens seen"
        facts.append(("Recovery cost", f"{seconds(cost.recover_s)}{seen}"))
    return facts


def _options(options: Mapping[str, Any]) -> str:
    facts = (f"{key} = {value}" for key, value in flatten(options).items() if key)
    return ", ".join(map(_cut, facts)) or "none"


def _cut(fact: str) -> str:
    # `apply` may hold a set of channels that fills a page.
    return fact if len(fact) <= LONGEST_OPTION else f"{fact[:LONGEST_OPTION]} ..."


def _windows(spec: CalibrationSpec) -> str:
    how = spec.sampler if spec.prompt is None else f"prompt {spec.prompt}, loss on {spec.loss_on}"
    return f"{spec.corpus.name} {spec.split}, {how}, {spec.amount}"


def audit_facts(record: Record, audit: Audit) -> Facts:
    """Sparsity, size and shape as counted, and what they should and did bring in speed."""
    expected = "yes" if audit.speedup_expected else "no"
    facts = [("Form", audit.form), ("Speed-up expected", f"{expected}: {audit.note}")]
    if measured := measured_speedup(record):
        facts.append(("Speed-up measured", measured))
    if locations := layer_locations(record):
        facts.append(("Layers held", locations))
    facts += [
        ("Zeros", f"{percent(audit.sparsity, 2)} of {count(audit.prunable)} prunable weights"),
        ("Prunable weights", f"{count(audit.prunable)} of {count(audit.prunable_dense)}"),
        ("Zeros in dense", count(audit.zeros_dense)),
        ("Parameters", f"{count(audit.parameters)} of {count(audit.parameters_dense)}"),
        ("Removed", percent(audit.removed_share)),
        ("In memory", size(audit.memory_bytes)),
        ("On disk", size(audit.disk_bytes)),
        ("Layers", f"{len(audit.kept_layers)} of {audit.layers_dense}"),
    ]
    if audit.experts:
        facts += _experts(audit.experts)
    if audit.removed_layers:
        facts.append(("Removed layers", ", ".join(map(str, audit.removed_layers))))
    if audit.removed_blocks:
        facts.append(("Removed attentions and MLPs", ", ".join(audit.removed_blocks)))
    facts += _widths(audit)
    for one in audit.patterns:
        broken = f"violated by {count(one.violations)} of {count(one.groups)} groups"
        facts.append((f"Pattern {one.pattern}", broken))
    return facts


def _experts(experts: ExpertsAudit) -> Facts:
    return [
        ("Routed experts in a layer", f"{experts.per_layer} of {experts.per_layer_dense}"),
        (
            "Zeros of routed experts",
            f"{percent(experts.sparsity, 2)} of {count(experts.prunable)} weights",
        ),
        ("Zeros without routed experts", percent(experts.sparsity_without, 2)),
    ]


def _widths(audit: Audit) -> Facts:
    """How wide the narrower attentions and MLPs are; layers of the same width together."""
    facts: Facts = []
    for kind, name in (("attention", "KV groups"), ("mlp", "MLP channels")):
        layers: dict[tuple[int, int], list[int]] = {}
        for one in audit.widths:
            if one.kind == kind:
                layers.setdefault((one.groups, one.groups_dense), []).append(one.layer)
        if layers:
            parts = [
                f"{now} of {before} in {layer_ranges(which)}"
                for (now, before), which in layers.items()
            ]
            facts.append((name, "; ".join(parts)))
    if audit.hidden is not None and audit.hidden != audit.hidden_dense:
        facts.append(("Residual channels", f"{audit.hidden} of {audit.hidden_dense}"))
    return facts
