"""Whether a method removed what its options ask for, by what was counted on the pruned model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from prunebench.plugin.api.sparsity import share_of
from prunebench.record.audit import Audit, LinearAudit

AMOUNTS = ("sparsity", "ratio", "count", "target_parameters")
"""Names of options that say how much to remove; a method may have several of them."""
TOLERANCE = 0.02
"""Allowed difference between a share that is asked for and the share that is counted."""


def missed(options: Any, audit: Audit, tolerance: float = TOLERANCE) -> str | None:
    """How the pruned model differs from what the (parsed) ``options`` ask for; None if it fits.

    'sparsity 50.0 % was asked for, 0.0 % measured'. `sparsity` is the share of zeros in the chosen
    linears, `count` a number of layers or sub-blocks, and `target_parameters` a share of all
    parameters. A `ratio` may be a share of anything that the audit counts, so it is missed only if
    it fits none of them.
    """
    asked = asked_of(options)
    for name, value in asked.items():
        if not value:
            continue
        if nothing_removed(audit):
            return f"{name} {_shown(name, value)} was asked for, and nothing was removed"
        if fault := _CHECKS[name](options, value, audit, tolerance):
            return fault
    return None


def asked_of(options: Any) -> dict[str, Any]:
    """The options that say how much to remove and have an effect, with their values."""
    idle = options.without_effect()
    return {
        name: value
        for name in AMOUNTS
        if name not in idle and _is_amount(value := getattr(options, name, None))
    }


def _is_amount(value: Any) -> bool:
    return isinstance(value, int | float | str) and not isinstance(value, bool)


def nothing_removed(audit: Audit) -> bool:
    """Whether the model has as many weights, zeros and residual channels as before."""
    narrower = audit.hidden is not None and audit.hidden < (audit.hidden_dense or 0)
    # Matrices that rotate the residual may have more weights than the channels that went.
    fewer = audit.parameters < audit.parameters_dense or narrower
    return audit.zeros <= audit.zeros_dense and not fewer


def _sparsity(options: Any, value: float | str, audit: Audit, tolerance: float) -> str | None:
    linears = _chosen(options, audit)
    weights = sum(each.rows * each.columns for each in linears)
    if not weights or audit.parameters < audit.parameters_dense:
        return None  # what left the model as a whole is no zero
    wanted = share_of(value)
    found = sum(each.zeros for each in linears) / weights
    # Zeros of a quantised model are there before, wherever they are.
    above = found - wanted - audit.zeros_dense / max(1, audit.prunable_dense)
    if wanted - found <= tolerance and above <= tolerance:
        return None
    said = f"sparsity {wanted:.1%} was asked for, {found:.1%} measured"
    worst = min(linears, key=lambda each: each.zeros / max(1, each.rows * each.columns))
    share = worst.zeros / max(1, worst.rows * worst.columns)
    if share < found - tolerance:
        said += f" (layer {worst.layer}, {worst.name}: {share:.1%})"
    if abs(found - (1 - wanted)) <= tolerance:
        said += "; is the mask inverted? True is for the weights to remove"
    return said


def _chosen(options: Any, audit: Audit) -> list[LinearAudit]:
    """The linears that ``options`` choose, if they can choose any."""
    choose = getattr(options, "chosen", None)
    if choose is None:
        return audit.linears
    names: dict[int, list[str]] = {}
    for each in audit.linears:
        names.setdefault(each.layer, []).append(each.name)
    found = choose(names)
    return [each for each in audit.linears if each.name in found.get(each.layer, ())]


def _count(options: Any, value: int, audit: Audit, tolerance: float) -> str | None:  # noqa: ARG001
    layers = len(audit.removed_layers)
    blocks = 2 * layers + len(audit.removed_blocks)
    if not (layers or blocks) or value in {layers, blocks}:
        return None  # it counts something else, such as channels
    return f"count {value} was asked for; {layers} layers and {blocks} sub-blocks were removed"


def _target(options: Any, value: float, audit: Audit, tolerance: float) -> str | None:  # noqa: ARG001
    if abs(audit.removed_share - value) <= max(tolerance, _unit(audit)):
        return None
    return (
        f"target_parameters {value:.1%} was asked for, {audit.removed_share:.1%} of the parameters"
        " were removed"
    )


def _ratio(options: Any, value: float, audit: Audit, tolerance: float) -> str | None:  # noqa: ARG001
    measures = dict(_measures(audit))
    if any(abs(found - value) <= max(tolerance, unit) for found, unit in measures.values()):
        return None
    said = ", ".join(f"{name} {found:.1%}" for name, (found, _) in measures.items() if found)
    return f"ratio {value:.1%} was asked for; removed are {said}"


def _measures(audit: Audit) -> Iterator[tuple[str, tuple[float, float]]]:
    """Shares of several units that were removed, by name, each with the share of one unit."""
    layers = max(1, audit.layers_dense)
    gone = len(audit.removed_layers)
    yield "zeros", (audit.sparsity, 0.0)
    yield "parameters", (audit.removed_share, _unit(audit))
    dense = max(1, audit.prunable_dense)
    yield "weights of the layers", (1 - audit.prunable / dense, _unit(audit))
    yield "layers", (gone / layers, 1 / layers)
    yield "sub-blocks", ((2 * gone + len(audit.removed_blocks)) / (2 * layers), 0.5 / layers)
    if audit.experts is not None:
        experts = audit.experts.per_layer_dense
        yield "experts", (1 - audit.experts.per_layer / experts, 1 / experts)
    if audit.hidden is not None and audit.hidden_dense:
        yield "residual channels", (1 - audit.hidden / audit.hidden_dense, 1 / audit.hidden_dense)
    now: Counter[str] = Counter()
    before: Counter[str] = Counter()
    for each in audit.widths:  # protected sub-blocks are not among them
        now[each.kind] += each.groups
        before[each.kind] += each.groups_dense
    for kind, name in (("attention", "KV groups"), ("mlp", "MLP channels")):
        if before[kind]:
            blocks = sum(each.kind == kind for each in audit.widths)
            yield name, (1 - now[kind] / before[kind], blocks / before[kind])


def _unit(audit: Audit) -> float:
    """The share of the parameters that the smallest removable part has, about."""
    if audit.removed_layers or audit.removed_blocks:
        return 1 / max(1, audit.layers_dense)
    return max(
        (1 / each.groups_dense / max(1, audit.layers_dense) for each in audit.widths), default=0.0
    )


def _shown(name: str, value: Any) -> str:
    return f"{value:.1%}" if isinstance(value, float) and name != "count" else str(value)


_CHECKS = {
    "sparsity": _sparsity,
    "ratio": _ratio,
    "count": _count,
    "target_parameters": _target,
}
