"""Audit what is really in a pruned model: zeros, N:M violations, parameters, bytes, missing parts.

The counts come from the weights themselves, not from what the method reports.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from prunebench.errors import PrunebenchError
from prunebench.measure.weight_counts import LayerCount, count_layer
from prunebench.model.anatomy import Anatomy, Block, anatomy
from prunebench.model.checkpoint import memory_bytes, parameter_count, safetensors_bytes
from prunebench.model.dense_indices import DenseIndices
from prunebench.model.indexed import indices_of_layer
from prunebench.model.pruning_json import Shape, shape_of
from prunebench.record.audit import Audit, ExpertsAudit, LinearAudit, PatternAudit, WidthAudit
from prunebench.record.kept_units import KeptUnits, index_text


@dataclass(frozen=True)
class DenseFacts:
    """What the pruned model is compared with; taken before anything is pruned."""

    parameters: int
    prunable_by_layer: tuple[int, ...]
    """Number of weights in the linears of each decoder layer."""
    zeros_by_layer: tuple[int, ...]
    """Zeros among them; a model that was quantised before has many."""
    shape: Shape
    weights: Mapping[tuple[int, str], int]
    """Size of each linear, by layer and name."""
    experts: tuple[int, ...]
    """Routed experts of each decoder layer."""

    @property
    def layers(self) -> int:
        return len(self.prunable_by_layer)

    @property
    def zeros(self) -> int:
        return sum(self.zeros_by_layer)

    @property
    def prunable(self) -> int:
        return sum(self.prunable_by_layer)


class _Form(NamedTuple):
    """The form of the pruned model in words, and whether it is expected to be faster."""

    name: str
    faster: bool
    note: str


def dense_facts(model: Any, counts: Sequence[LayerCount] | None = None) -> DenseFacts:
    """The facts about the dense ``model``.

    If its layers are not in memory, pass what was counted before: ``counts``, one per layer. Raises
    PrunebenchError if a weight is not finite.
    """
    counts = count_layers(model) if counts is None else counts
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
        experts=tuple(count.experts for count in counts),
    )


def count_layers(model: Any) -> list[LayerCount]:
    """The zeros of each layer of the dense ``model``; raises as `dense_facts` does."""
    parts = anatomy(model)
    return [count_layer(parts.linears(layer), index) for index, layer in enumerate(parts.layers)]


def audit(
    model: Any,
    dense: DenseFacts,
    left: DenseIndices,
    patterns: Sequence[tuple[int, int]] = (),
    counts: Sequence[LayerCount] | None = None,
) -> Audit:
    """Count the pruned ``model`` and compare it with the ``dense`` one.

    ``left`` says what the cuts left of the dense model. ``patterns`` are pairs (keep, of): each
    group of ``of`` weights is checked for at most ``keep`` non-zeros. If the layers are not in
    memory, pass what was counted before: ``counts``, one per layer. Raises PrunebenchError if a
    weight is not finite, or for another number of layers than is left.
    """
    parts, kept_layers = anatomy(model), left.layers
    _check_layers(len(parts.layers), dense, kept_layers)
    counts = counts or _counted(parts, kept_layers, patterns)
    linears = _linears(dense, kept_layers, counts)
    checked = _patterns(patterns, counts)
    prunable = sum(entry.rows * entry.columns for entry in linears)
    zeros = sum(entry.zeros for entry in linears)
    parameters, shape = parameter_count(model), shape_of(model)
    gone, widths = _narrowed(shape, dense.shape, kept_layers)
    experts = _experts(dense, kept_layers, counts)
    form = _form(
        removed=dense.layers - len(kept_layers),
        blocks=len(gone),
        narrower=bool(widths) or shape.has_narrower_stream_than(dense.shape),
        fewer_experts=experts is not None and experts.fewer,
        # More than before in the layers that remain: a quantised model has zeros of its own.
        more_zeros=zeros > sum(dense.zeros_by_layer[layer] for layer in kept_layers),
        legal=[entry.pattern for entry in checked if entry.groups and not entry.violations],
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
        kept=_kept_units(parts, left, shape, dense, counts),
        hidden=shape.hidden,
        hidden_dense=dense.shape.hidden,
        experts=experts,
        patterns=checked,
        form=form.name,
        speedup_expected=form.faster,
        note=form.note,
        linears=linears,
    )


def _counted(
    parts: Anatomy, kept_layers: Sequence[int], patterns: Sequence[tuple[int, int]]
) -> list[LayerCount]:
    layers = zip(kept_layers, parts.layers, strict=True)
    return [count_layer(parts.linears(each), layer, patterns) for layer, each in layers]


def _check_layers(layers: int, dense: DenseFacts, kept_layers: Sequence[int]) -> None:
    if layers != len(kept_layers):
        raise PrunebenchError(
            f"the pruned model has {layers} decoder layers, but {len(kept_layers)} of "
            f"{dense.layers} should remain",
            hint="the method must remove layers through its context, which keeps count",
        )


def _linears(
    dense: DenseFacts, kept_layers: Sequence[int], counts: Sequence[LayerCount]
) -> list[LinearAudit]:
    return [
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


def _patterns(
    patterns: Sequence[tuple[int, int]], counts: Sequence[LayerCount]
) -> list[PatternAudit]:
    return [
        PatternAudit(
            pattern=f"{keep}:{of}",
            groups=sum(count.groups[keep, of] for count in counts),
            violations=sum(count.violations[keep, of] for count in counts),
        )
        for keep, of in patterns
    ]


def _narrowed(
    shape: Shape, dense: Shape, kept_layers: Sequence[int]
) -> tuple[list[str], list[WidthAudit]]:
    """(removed blocks, narrower blocks) of the layers that remain, by dense index."""
    gone: list[str] = []
    widths: list[WidthAudit] = []
    for (layer, kind), groups, groups_dense in _widths(shape, dense, kept_layers):
        # A block of no width computes nothing: it is removed, not narrow.
        if groups == 0 < groups_dense:
            gone.append(f"{layer}.{kind}")
        elif groups < groups_dense:
            widths.append(
                WidthAudit(layer=layer, kind=kind, groups=groups, groups_dense=groups_dense)
            )
    return gone, widths


def _experts(
    dense: DenseFacts, kept_layers: Sequence[int], counts: Sequence[LayerCount]
) -> ExpertsAudit | None:
    having = [
        (layer, count) for layer, count in zip(kept_layers, counts, strict=True) if count.experts
    ]
    if not having:
        return None
    weights, zeros = (
        sum(each) for each in zip(*(count.of_experts for _, count in having), strict=True)
    )
    others = (
        sum(rows * columns for count in counts for rows, columns in count.shapes.values()) - weights
    )
    zeros_of_others = sum(sum(count.zeros.values()) for count in counts) - zeros
    return ExpertsAudit(
        per_layer=min(count.experts for _, count in having),
        per_layer_dense=min(dense.experts[layer] for layer, _ in having),
        prunable=weights,
        zeros=zeros,
        sparsity=zeros / weights if weights else 0.0,
        sparsity_without=zeros_of_others / others if others else 0.0,
    )


def _kept_units(
    parts: Anatomy,
    left: DenseIndices,
    shape: Shape,
    facts: DenseFacts,
    counts: Sequence[LayerCount],
) -> KeptUnits:
    """Which units stayed; not known where a block is not as wide as the cuts in ``left`` make it.

    Then the method made it narrower itself, without the tools of its context.
    """
    dense = facts.shape
    kept = KeptUnits(
        layers=index_text(left.layers, len(dense.layers)),
        hidden=_checked(left.hidden, shape.hidden, dense.hidden),
    )
    for layer, count in zip(left.layers, counts, strict=True):
        if count.experts != facts.experts[layer]:
            kept.experts[layer] = _checked(
                left.experts.get(layer), count.experts, facts.experts[layer]
            )
    for block, groups, groups_dense in _widths(shape, dense, left.layers):
        known = left.groups.get(block)
        if groups != groups_dense or (known is not None and len(known) != groups):
            units = kept.attention if block.kind == "attention" else kept.mlp
            units[block.layer] = _checked(known, groups, groups_dense)
    if dense.indexed is None:
        hidden = range(dense.hidden) if left.hidden is None else left.hidden
        for layer, module in zip(left.layers, parts.layers, strict=True):
            for name, channels in indices_of_layer(module).items():
                found: dict[int, str] = getattr(kept, name)
                found[layer] = index_text([hidden[each] for each in channels], dense.hidden)
    return kept


def _checked(known: Sequence[int] | None, now: int, dense: int) -> str | None:
    """The text of the ``known`` indices, or of all; None if there are not as many as ``now``."""
    indices = range(dense) if known is None else known
    return index_text(indices, dense) if len(indices) == now else None


def _widths(
    shape: Shape, dense: Shape, kept_layers: Sequence[int]
) -> Iterator[tuple[Block, int, int]]:
    """(block in the dense model, groups now, groups there) of the layers that remain."""
    for layer, now in zip(kept_layers, shape.layers, strict=True):
        before = dense.layers[layer]
        yield Block(layer, "attention"), now.kv_groups, before.kv_groups
        yield Block(layer, "mlp"), now.mlp_channels, before.mlp_channels


def _form(
    *,
    removed: int,
    blocks: int,
    narrower: bool,
    fewer_experts: bool,
    more_zeros: bool,
    legal: list[str],
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
    if fewer_experts:
        parts.append("experts removed")
        notes.append(
            "experts removed: less memory; a token still goes to as many, so that only batches, and"
            " models that did not fit into memory, are expected to be faster"
        )
    if more_zeros:
        parts.append("dense with zeros")
        notes.append(
            "zeros in dense tensors: dense kernels do the same work, no speed-up expected here"
        )
        if "2:4" in legal:
            notes.append(
                "the 2:4 pattern holds everywhere: a GPU with sparse tensor cores can use it"
            )
    if not parts:
        return _Form("dense", faster=False, note="nothing is removed: no speed-up expected")
    return _Form(
        ", ".join(parts), faster=bool(removed or blocks or narrower), note="; ".join(notes)
    )
