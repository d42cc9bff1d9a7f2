"""From a cell to its pruned model: fetch, load, calibrate, prune, recover, audit."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from prunebench.cell.before_pruning import check_before_pruning
from prunebench.cell.dense_counts import DenseCounts
from prunebench.cell.dense_identity import dense_identity
from prunebench.cell.recover import RecoveryResult, recover, recovery_of
from prunebench.cell.setup import CellSetup, seed_all, vocabulary_size
from prunebench.errors import PrunebenchError
from prunebench.experiment.cell import Cell
from prunebench.experiment.text import CalibrationSpec
from prunebench.isolation.model_guard import ModelGuard
from prunebench.isolation.process_guard import guarded
from prunebench.measure.audit import DenseFacts, audit, count_layers, dense_facts
from prunebench.measure.weight_counts import LayerCount, count_layer
from prunebench.model.adapter import attached
from prunebench.model.anatomy import anatomy
from prunebench.model.dense_indices import DenseIndices
from prunebench.model.folder import read_checkpoint
from prunebench.model.load import LoadedModel, load_bare
from prunebench.model.placement import is_offloaded
from prunebench.model.streamed import StreamedModel, open_tensors
from prunebench.plugin.api.allocation import Allocation, allocate
from prunebench.plugin.api.context import Context
from prunebench.plugin.api.sparsity import pattern_of
from prunebench.plugin.asked import asked_of, missed, nothing_removed
from prunebench.plugin.plugin_code import plugin_code
from prunebench.record.audit import Audit
from prunebench.record.io import LoadIO
from prunebench.text.windows import Windows, calibration_windows

if TYPE_CHECKING:
    from prunebench.layerwise.device_moves import LayerSource
    from prunebench.plugin.api.method import Method, Reference


@dataclass(frozen=True)
class PrunedCell:
    """A pruned model, and what is known about how it was made."""

    loaded: LoadedModel
    dense: DenseFacts
    audit: Audit
    load: LoadIO
    calibration: Windows | None
    notes: dict[str, Any]
    """What the method says about itself."""
    recovery: RecoveryResult
    reference: Reference | None
    """Where the method was published."""
    calibration_reason: str | None = None
    """Why the cell has its calibration, if nobody named one."""

    @property
    def is_changed(self) -> bool:
        """Whether the method or the recovery changed anything that could change the speed."""
        return (
            attached(self.loaded.model) is not None
            or self.audit.zeros != self.dense.zeros
            or self.audit.parameters != self.dense.parameters
        )

    def made_by(self, cell: Cell) -> dict[str, Any]:
        """The model's origin, for people who find the saved checkpoint."""
        origin: dict[str, Any] = {
            "prunebench": version("prunebench"),
            "model": cell.model.identity(),
            "method": cell.method.name,
            "options": cell.method.options,
            "seed": cell.seed,
            "kept_layers": self.audit.kept_layers,
        }
        if cell.calibration is not None and self.calibration is not None:
            origin["calibration"] = {
                **cell.calibration.model_dump(mode="json", exclude={"corpus"}),
                "corpus": cell.calibration.corpus.name,
                "sha256": self.calibration.sha256,
            }
            if self.calibration_reason is not None:
                origin["calibration"]["reason"] = self.calibration_reason
        if cell.allocation is not None:
            origin["allocation"] = {
                "name": cell.allocation.name,
                "options": cell.allocation.options,
            }
        if cell.recovery is not None:
            origin["recovery"] = {"name": cell.recovery.name, "options": cell.recovery.options}
        return origin


def build_pruned_model(setup: CellSetup) -> PrunedCell:
    """Load, prune, recover and audit.

    Raises whatever a plugin raises, and PrunebenchError for what a user can fix.
    """
    cell = setup.cell
    # All plugins are looked up before anything is fetched: a missing one fails within a second.
    method: Method = setup.plugin(cell.method, "method")
    allocation, recovery = allocation_of(setup), recovery_of(setup)
    setup.fetch()
    unchanged = method.structure == {"none"} and recovery is None
    kept = DenseCounts(dense_identity(setup))
    with setup.phases.phase("audit"):
        known = kept.load()
    loaded, load = setup.load_timed(unchanged=unchanged, checked=known is not None)
    check_before_pruning(cell, loaded)
    with setup.phases.phase("audit"):
        counted, counts = _countable(setup, loaded)
        if known is None:
            known = counts or count_layers(counted)
            kept.store(known)
        dense = dense_facts(counted, known)
    calibration, notes, left = prune_loaded(setup, method, allocation, loaded)
    recovered = recover(recovery, setup, loaded, left)
    # What is measured must not depend on how much randomness the method used.
    seed_all(cell.seed)
    with setup.phases.phase("audit"):
        audited = audit(counted, dense, left, checked_patterns(cell), counts)
        audited = with_missed(audited, method, setup)
    return PrunedCell(
        loaded,
        dense,
        audited,
        load,
        calibration,
        notes,
        recovered,
        method.reference,
        setup.calibration_reason,
    )


def with_missed(audited: Audit, method: Method, setup: CellSetup) -> Audit:
    """The audit with what the method missed of what its options ask for, which is also a flag."""
    if method.structure == {"none"}:
        return audited
    fault = missed(method.options, audited)
    if fault is None and nothing_removed(audited) and not asked_of(method.options):
        fault = "nothing was removed"
    if fault is not None:
        setup.flags.add("the method", f"missed what it was asked for: {fault}")
    return audited.model_copy(update={"missed": fault})


def prune_loaded(
    setup: CellSetup,
    method: Method,
    allocation: Allocation | None,
    loaded: LoadedModel,
    layer_source: LayerSource | None = None,
) -> tuple[Windows | None, dict[str, Any], DenseIndices]:
    """Prune the loaded model in place.

    ``layer_source`` lends the layers if they are not in memory. Returns the calibration windows,
    the method's notes, and what it left of the dense model.
    """
    cell, phases = setup.cell, setup.phases
    windows = None
    if cell.calibration is not None:
        with phases.phase("calibration text"):
            windows = _draw(setup, loaded, cell.calibration)
    context = Context(
        calibration=None if windows is None else windows.tokens,
        seed=cell.seed,
        kept_layers=list(range(len(anatomy(loaded.model).layers))),
        progress=phases.progress,
        say=phases.say,
        log=logging.getLogger(f"prunebench.{cell.method.name}"),
        device=setup.layer_device,
        layer_source=layer_source,
        draw=partial(_fresh_windows, setup, loaded),
        alone=phases.alone,
        remember=setup.remember,
        checkpoints=setup.checkpoints("prune"),
    )
    guard = ModelGuard(loaded.model, "the method")
    with phases.phase("prune"), torch.no_grad(), guarded("the method", setup.flags):
        if allocation is not None:
            with plugin_code(allocation):
                context.shares = allocate(
                    allocation, loaded.model, method.options.sparsity, context
                )
        with plugin_code(method):
            method.prune(loaded.model, context)
        # Without this check a method that ignores the allocation would look like one that used it.
        if allocation is not None and not context.used_shares:
            raise PrunebenchError(
                f"'{cell.method.name}' pruned without using the allocation '{allocation.name}'",
                hint="its author should override `refuses_allocation`, "
                "or prune with `context.prune_linears`",
            )
    with phases.phase("check"):
        guard.check(loaded.model, setup.flags)
    return windows, setup.plain_notes(context.notes, "the method"), context.dense_indices


def _draw(setup: CellSetup, loaded: LoadedModel, spec: CalibrationSpec, number: int = 0) -> Windows:
    """The windows of ``spec`` with the cell's seed, or the ``number``-th seed after it."""
    return calibration_windows(
        spec,
        loaded.tokenizer,
        vocabulary_size(loaded.model),
        setup.cell.seed + number,
        setup.corpora,
    )


def _fresh_windows(setup: CellSetup, loaded: LoadedModel, number: int) -> torch.Tensor:
    """The windows after ``number`` samples of the calibration, int64 [windows, length]."""
    spec = setup.cell.calibration
    if spec is None:
        raise ValueError("the cell has no calibration")
    if spec.windows is None:  # all windows of some rows: take those of other rows
        return _draw(setup, loaded, spec, number).tokens
    # A sampler that draws more windows begins with those that it draws when asked for fewer, unless
    # joined-rows needs more rows for them; it then draws other rows.
    several = spec.model_copy(update={"windows": (number + 1) * spec.windows})
    return _draw(setup, loaded, several).tokens[-spec.windows :]


def allocation_of(setup: CellSetup) -> Allocation | None:
    """The allocation that the cell names. Raises PrunebenchError if no plugin registers it."""
    ref = setup.cell.allocation
    return None if ref is None else setup.plugin(ref, "allocation")


def checked_patterns(cell: Cell) -> Sequence[tuple[int, int]]:
    """The N:M patterns to audit: 2:4, which hardware can use, and the one that the cell names."""
    asked = pattern_of(cell.method.options.get("sparsity", 0.0))
    return sorted({(2, 4), (asked.keep, asked.of)} if asked else {(2, 4)})


def _countable(setup: CellSetup, loaded: LoadedModel) -> tuple[Any, list[LayerCount] | None]:
    """A model to audit, and the counts of its layers if its weights are offloaded to disk.

    Offloaded weights are read from the checkpoint one layer at a time; such a model is never
    pruned, so its files are what is in use.
    """
    if not is_offloaded(loaded.model):
        return loaded.model, None
    cell = setup.cell
    model = load_bare(
        setup.folder,
        dtype=cell.model.dtype,
        device="cpu",
        trust_remote_code=cell.model.trust_remote_code,
    ).model
    parts = anatomy(model)
    counts = []
    with open_tensors(read_checkpoint(setup.folder)) as source:
        streamed = StreamedModel(model, source)
        for index, layer in enumerate(parts.layers):
            with streamed.layer(index, changes=False):
                counts.append(count_layer(parts.linears(layer), index, checked_patterns(cell)))
    return model, counts
