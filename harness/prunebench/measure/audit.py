"""What is really in a pruned model: zeros, N:M legality, parameters, bytes, parts that are gone.

Counted on the weights themselves, whatever the method says of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunebench.errors import PrunebenchError
from prunebench.model.anatomy import anatomy
from prunebench.model.checkpoint import memory_bytes, parameter_count, safetensors_bytes
from prunebench.model.pruning_json import LayerShape, Shape, shape_of
from prunebench.record.audit import Audit, LinearAudit, PatternAudit, WidthAudit


@dataclass(frozen=True)
class DenseFacts:
    """What to hold the pruned model against; taken before anything is pruned."""

    parameters: int
    prunable_by_layer: tuple[int, ...]
    """Weights of the linears of each decoder layer."""
    zeros_by_layer: tuple[int, ...]
    """Zeros among them: a model that was quantised before has many."""
    shape: Shape
    weights: Mapping[tuple[int, str], int]
    """Size of each linear, by layer and name."""

    @property
    def layers(self) -> int:
        return len(self.prunable_by_layer)

    @property
    def zeros(self) -> int:
        return sum(self.zeros_by_layer)

    @property
    def prunable(self) -> int:
        return sum(self.prunable_by_layer)


@dataclass(frozen=True)
class LayerCount:
    """What is counted on the linears of one layer, by name."""

    shapes: Mapping[str, tuple[int, int]]
    zeros: Mapping[str, int]
    groups: Mapping[tuple[int, int], int]
    """Groups of weights by pattern (keep, of), and of these the ones with more non-zeros than the pattern allows."""
    violations: Mapping[tuple[int, int], int]


class _Form(NamedTuple):
    name: str
    faster: bool
    note: str


@torch.no_grad()
def count_layer(
    linears: Mapping[str, nn.Linear], layer: int, patterns: Sequence[tuple[int, int]] = ()
) -> LayerCount:
    """Count the ``linears`` of a layer, whose index in the dense model is ``layer``; ``patterns`` as for `audit`.

    Raises PrunebenchError where a weight is not finite.
    """
    shapes, zeros = {}, {}
    groups, violations = dict.fromkeys(patterns, 0), dict.fromkeys(patterns, 0)
    for name, linear in linears.items():
        _check_finite(linear.weight, name, layer)
        kept = (
            linear.weight.bool()
        )  # [out, in], True where a weight is not zero; many times faster than counting floats
        rows, columns = kept.shape
        shapes[name] = rows, columns
        zeros[name] = kept.numel() - int(torch.count_nonzero(kept))
        for pattern in patterns:
            checked = nm_violations(kept, *pattern)
            groups[pattern] += checked[0]
            violations[pattern] += checked[1]
    return LayerCount(shapes, zeros, groups, violations)


def dense_facts(model: Any, counts: Sequence[LayerCount] | None = None) -> DenseFacts:
    """The dense ``model``, counted here or, where its layers are not in memory, before: ``counts``, one a layer.

    Raises PrunebenchError where one of its weights is not finite.
    """
    parts = anatomy(model)
    if counts is None:
        counts = [
            count_layer(parts.linears(layer), index) for index, layer in enumerate(parts.layers)
        ]
    weights = {
        (index, name): rows * columns
        for index, count in enumerate(counts)
        for name, (rows, columns) in count.shapes.items()
    }
    return DenseFacts(
        parameters=parameter_count(model),
        prunable_by_layer=tuple(
            sum(rows * columns for rows, columns in count.shapes.values()) for count in counts
        ),
        zeros_by_layer=tuple(sum(count.zeros.values()) for count in counts),
        shape=shape_of(model),
        weights=weights,
    )


def audit(
    model: Any,
    dense: DenseFacts,
    kept_layers: Sequence[int],
    patterns: Sequence[tuple[int, int]] = (),
    counts: Sequence[LayerCount] | None = None,
) -> Audit:
    """Count the pruned ``model``, here or, where its layers are not in memory, before: ``counts``, one a layer.

    ``kept_layers`` are the indices, in the dense model, of the decoder layers that remain, in order; ``patterns`` are
    pairs (keep, of) for which groups of weights are checked. Raises PrunebenchError where a weight is not finite or
    the model has another number of layers than ``kept_layers``.
    """
    parts = anatomy(model)
    layers = len(parts.layers)
    if layers != len(kept_layers):
        raise PrunebenchError(
            f"the pruned model has {layers} decoder layers, {len(kept_layers)} are said to remain of {dense.layers}",
            hint="the method must remove layers through its context, which keeps count",
        )
    if counts is None:
        counts = [
            count_layer(parts.linears(module), layer, patterns)
            for layer, module in zip(kept_layers, parts.layers, strict=True)
        ]
    linears = [
        LinearAudit(
            layer=layer,
            name=name,
            rows=rows,
            columns=columns,
            zeros=count.zeros[name],
            dense=dense.weights[layer, name],
        )
        for layer, count in zip(kept_layers, counts, strict=True)
        for name, (rows, columns) in count.shapes.items()
    ]
    prunable = sum(entry.rows * entry.columns for entry in linears)
    zeros = sum(entry.zeros for entry in linears)
    parameters = parameter_count(model)
    checked_patterns = [
        PatternAudit(
            pattern=f"{keep}:{of}",
            groups=sum(count.groups[keep, of] for count in counts),
            violations=sum(count.violations[keep, of] for count in counts),
        )
        for keep, of in patterns
    ]
    shape = shape_of(model)
    gone, widths = _narrowed(shape, dense.shape, kept_layers)
    narrower = bool(widths) or shape.hidden < dense.shape.hidden
    more_zeros = zeros > sum(dense.zeros_by_layer[layer] for layer in kept_layers)
    legal = [entry.pattern for entry in checked_patterns if entry.groups and not entry.violations]
    form = _form(
        removed=dense.layers - layers,
        blocks=len(gone),
        narrower=narrower,
        more_zeros=more_zeros,
        legal=legal,
    )
    return Audit(
        parameters=parameters,
        parameters_dense=dense.parameters,
        prunable=prunable,
        prunable_dense=dense.prunable,
        zeros=zeros,
        sparsity=zeros / prunable if prunable else 0.0,
        zeros_dense=dense.zeros,
        removed_share=1 - parameters / dense.parameters,
        memory_bytes=memory_bytes(model),
        disk_bytes=safetensors_bytes(model),
        layers_dense=dense.layers,
        kept_layers=list(kept_layers),
        removed_layers=[layer for layer in range(dense.layers) if layer not in set(kept_layers)],
        removed_blocks=gone,
        widths=widths,
        hidden=shape.hidden,
        hidden_dense=dense.shape.hidden,
        patterns=checked_patterns,
        form=form.name,
        speedup_expected=form.faster,
        note=form.note,
        linears=linears,
    )


def nm_violations(kept: Tensor, keep: int, of: int) -> tuple[int, int]:
    """(groups, groups with more than ``keep`` non-zeros) of a mask, bool [out, in], True where a weight is not zero.

    A group is ``of`` consecutive inputs of one output, aligned to the row's begin, as in the sparse tensor cores'
    format; a row that does not divide ends in a shorter group, as if it were filled up with zeros.
    """
    columns = kept.shape[1]
    if columns % of:
        kept = F.pad(kept, (0, of - columns % of))
    count = torch.uint8 if of < 256 else torch.int32
    filled = kept.reshape(-1, of).sum(1, dtype=count)  # [groups]
    return filled.numel(), int(torch.count_nonzero(filled > keep))


def _narrowed(
    shape: Shape, dense: Shape, kept_layers: Sequence[int]
) -> tuple[list[str], list[WidthAudit]]:
    """The sub-blocks that are gone from layers that remain, and those that are narrower; dense indices."""
    gone: list[str] = []
    widths: list[WidthAudit] = []
    for layer, now in zip(kept_layers, shape.layers, strict=True):
        before: LayerShape = dense.layers[layer]
        for kind, groups, groups_dense in (
            ("attention", now.kv_groups, before.kv_groups),
            ("mlp", now.mlp_channels, before.mlp_channels),
        ):
            if groups == 0 < groups_dense:
                gone.append(f"{layer}.{kind}")
            elif groups < groups_dense:
                widths.append(
                    WidthAudit(layer=layer, kind=kind, groups=groups, groups_dense=groups_dense)
                )
    return gone, widths


def _form(
    *, removed: int, blocks: int, narrower: bool, more_zeros: bool, legal: list[str]
) -> _Form:
    parts, notes = [], []
    if removed:
        parts.append("layers removed")
        notes.append("layers removed: less work for every token")
    if blocks:
        parts.append("blocks removed")
        notes.append("attentions or MLPs removed: less work for every token")
    if narrower:
        parts.append("sliced")
        notes.append("matrices smaller: less work for every token")
    if more_zeros:
        parts.append("dense with zeros")
        notes.append(
            "zeros in dense tensors: dense kernels do the same work, no speed-up expected here"
        )
        if "2:4" in legal:
            notes.append(
                "the 2:4 pattern holds everywhere: sparse tensor cores can use it, where a GPU has them"
            )
    if not parts:
        return _Form("dense", faster=False, note="nothing is removed: no speed-up expected")
    return _Form(
        ", ".join(parts), faster=bool(removed or blocks or narrower), note="; ".join(notes)
    )


def _check_finite(weight: Tensor, name: str, layer: int) -> None:
    if not weight.numel():
        return
    low, high = torch.aminmax(weight)  # NaN comes through
    if not torch.isfinite(high - low) and not bool(torch.isfinite(weight).all()):
        raise PrunebenchError(
            f"layer {layer}, {name}: some weights are not finite",
            hint="the method divides by zero or overflows there; try it in float32",
        )
