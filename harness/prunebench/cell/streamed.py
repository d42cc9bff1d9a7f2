"""Prune a model that is never in memory as a whole: from its weight files to new ones.

Each decoder layer is read, pruned, counted and written before the next one; then the rest of the
weights is copied.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from prunebench.cell.before_pruning import check_before_pruning
from prunebench.cell.pipeline import (
    PrunedCell,
    allocation_of,
    checked_patterns,
    prune_loaded,
    with_missed,
)
from prunebench.cell.recover import RecoveryResult
from prunebench.cell.setup import CellSetup, seed_all
from prunebench.errors import PrunebenchError
from prunebench.isolation.model_guard import first_not_finite, not_finite
from prunebench.measure.audit import DenseFacts, audit, dense_facts
from prunebench.measure.speed.io import load_io
from prunebench.measure.weight_counts import LayerCount, count_layer
from prunebench.model.anatomy import anatomy
from prunebench.model.checkpoint import save_by_pieces
from prunebench.model.dense_indices import DenseIndices
from prunebench.model.finite import check_stored_weights
from prunebench.model.folder import read_checkpoint
from prunebench.model.load import load_bare
from prunebench.model.pruning_json import PruningFile, shape_of, write_pruning_file
from prunebench.model.streamed import StreamedModel, open_tensors
from prunebench.record.audit import Audit

if TYPE_CHECKING:
    from prunebench.experiment.cell import Cell
    from prunebench.plugin.api.allocation import Allocation
    from prunebench.plugin.api.method import Method

SHARD_BYTES = 2_000_000_000


def build_streamed(setup: CellSetup, out: Path, shard_bytes: int = SHARD_BYTES) -> PrunedCell:
    """Prune from file to file and audit.

    ``out`` then holds what `checkpoint.save` writes for the same model pruned in memory; the model
    in the result has no weights. Raises whatever a plugin raises, and PrunebenchError for what a
    user can fix; ``out`` is then unchanged.
    """
    cell, phases = setup.cell, setup.phases
    method: Method = setup.plugin(cell.method, "method")
    allocation = allocation_of(setup)
    check_streamable(cell, method, allocation)
    setup.fetch()
    with phases.phase("load"):
        loaded = load_bare(
            setup.folder,
            dtype=cell.model.dtype,
            device=setup.device,
            trust_remote_code=cell.model.trust_remote_code,
        )
    check_before_pruning(cell, loaded)
    for note in loaded.notes:
        setup.flags.add("the checkpoint", note)
    checkpoint = read_checkpoint(setup.folder)
    counter = _LayerCounter(loaded.model, cell)
    source = open_tensors(checkpoint)
    save = save_by_pieces(loaded.model, loaded.tokenizer, out, shard_bytes=shard_bytes)
    with source, save as (aside, target):
        streamed = StreamedModel(
            loaded.model,
            source,
            target,
            device=setup.device,
            read=counter.count_dense,
            changed=counter.count_pruned,
        )
        # Before hours of pruning, although it reads the files once more.
        with phases.phase("check"):
            check_stored_weights(streamed.stored_pieces(), checkpoint)
        calibration, notes, left = prune_loaded(setup, method, allocation, loaded, streamed)
        counter.check_complete(method.name)
        seed_all(cell.seed)
        with phases.phase("save"):
            streamed.copy_rest()
        with phases.phase("audit"):
            dense, audited = counter.audit(left)
            audited = with_missed(audited, method, setup)
        pruned = PrunedCell(
            loaded,
            dense,
            audited,
            load_io(loaded.weight_bytes, loaded.seconds, None),
            calibration,
            notes,
            RecoveryResult(),
            method.reference,
            setup.calibration_reason,
        )
        # Written into the folder that becomes ``out`` when this block ends without an error.
        write_pruning_file(aside, _pruning_file(pruned, cell))
    return pruned


def _pruning_file(pruned: PrunedCell, cell: Cell) -> PruningFile:
    return PruningFile(
        plain=True,  # layer-wise methods change no shape
        shape=shape_of(pruned.loaded.model),
        kept=pruned.audit.kept,
        made_by=pruned.made_by(cell),
    )


class _LayerCounter:
    """Counts each layer while it is in memory: before it is pruned, and before it is written."""

    def __init__(self, model: torch.nn.Module, cell: Cell) -> None:
        self._model = model
        self._parts = anatomy(model)
        self._patterns = checked_patterns(cell)
        self._dense: dict[int, LayerCount] = {}
        self._pruned: dict[int, LayerCount] = {}

    def count_dense(self, index: int, layer: torch.nn.Module) -> None:
        self._dense[index] = count_layer(self._parts.linears(layer), index)

    def count_pruned(self, index: int, layer: torch.nn.Module) -> None:
        """Raises PrunebenchError if the layer holds NaN or infinity."""
        if name := first_not_finite(layer):
            raise not_finite(f"{self._parts.layers_path}.{index}.{name}")
        self._pruned[index] = count_layer(self._parts.linears(layer), index, self._patterns)

    def check_complete(self, method: str) -> None:
        """Raise PrunebenchError if the method did not go through every layer."""
        skipped = len(self._parts.layers) - len(self._pruned)
        if skipped > 0:
            raise PrunebenchError(
                f"'{method}' did not read {skipped} layers",
                hint="its author should override `refuses_streaming`, "
                "or prune with `context.prune_linears`",
            )

    def audit(self, left: DenseIndices) -> tuple[DenseFacts, Audit]:
        dense = dense_facts(self._model, [self._dense[index] for index in left.layers])
        counts = [self._pruned[index] for index in left.layers]
        return dense, audit(self._model, dense, left, self._patterns, counts)


def check_streamable(cell: Cell, method: Method, allocation: Allocation | None) -> None:
    """Raise PrunebenchError, with the reason, if the cell cannot be pruned from its files."""
    if allocation is not None and (reason := allocation.refuses_streaming(allocation.options)):
        raise PrunebenchError(
            f"the allocation '{allocation.name}' cannot look at the model layer by layer: {reason}",
            hint="leave out --stream, or choose an allocation such as owl",
        )
    if reason := method.refuses_streaming(method.options):
        raise PrunebenchError(
            f"'{cell.method.name}' cannot prune layer by layer from the files: {reason}",
            hint="leave out --stream, or choose a layer-wise method such as wanda or sparsegpt",
        )
    if cell.recovery is not None:
        raise PrunebenchError(
            f"the recovery '{cell.recovery.name}' trains the whole model",
            hint="leave out --stream, or the recovery",
        )
    if cell.model.kind in {"gguf", "wheel"}:
        raise PrunebenchError(
            f"{cell.model.name} is a GGUF file, whose weights are unpacked as a whole",
            hint="leave out --stream, or save it as safetensors first: "
            "prunebench prune MODEL dense --out FOLDER",
        )
