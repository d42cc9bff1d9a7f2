"""A cell's pruned model without ever holding it: from its weight files, layer by layer, to new weight files.

fetch -> config and tokenizer -> calibration windows -> [read a layer -> prune it -> count it -> write it] -> copy the rest
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from prunebench.cell.lookup import plugin_of
from prunebench.cell.pipeline import (
    PrunedCell,
    Workbench,
    allocation_of,
    patterns_of,
    prune_loaded,
    seed_all,
)
from prunebench.cell.recover import RecoveryResult
from prunebench.errors import PrunebenchError
from prunebench.isolation.model_guard import first_not_finite, not_finite
from prunebench.measure.audit import LayerCount, audit, count_layer, dense_facts
from prunebench.measure.speed.io import load_io
from prunebench.model.anatomy import anatomy
from prunebench.model.checkpoint import save_by_pieces
from prunebench.model.fetch import fetch_checkpoint
from prunebench.model.folder import read_checkpoint
from prunebench.model.load import load_bare
from prunebench.model.pruning_json import PruningFile, shape_of, write_pruning_file
from prunebench.model.streamed import StreamedModel, open_tensors

if TYPE_CHECKING:
    from prunebench.experiment.cell import Cell
    from prunebench.plugin.api.method import Method

SHARD_BYTES = 2_000_000_000


def build_streamed(bench: Workbench, out: Path, shard_bytes: int = SHARD_BYTES) -> PrunedCell:
    """Prune from file to file and audit; ``out`` is then what `checkpoint.save` writes of the same model in memory.

    The model that is given has no weights. Raises what a plugin raises, and PrunebenchError for what a user can mend;
    ``out`` is then as before.
    """
    cell, phases = bench.cell, bench.phases
    method: Method = plugin_of(cell.method, "method", bench.registry)
    check_streamable(cell, method)
    allocation = allocation_of(cell, bench.registry)
    with phases.phase("fetch"):
        bench.folder = fetch_checkpoint(cell.model)
    with phases.phase("load"):
        loaded = load_bare(bench.folder, dtype=cell.model.dtype, device=bench.device)
    parts = anatomy(loaded.model)
    before: dict[int, LayerCount] = {}
    after: dict[int, LayerCount] = {}

    def read(index: int, layer: torch.nn.Module) -> None:
        before[index] = count_layer(parts.linears(layer), index)

    def changed(index: int, layer: torch.nn.Module) -> None:
        if name := first_not_finite(layer):
            raise not_finite(f"{parts.layers_path}.{index}.{name}")
        after[index] = count_layer(parts.linears(layer), index, patterns_of(cell))

    source = open_tensors(read_checkpoint(bench.folder))
    with (
        source,
        save_by_pieces(loaded.model, loaded.tokenizer, out, shard_bytes=shard_bytes) as (
            aside,
            target,
        ),
    ):
        streamed = StreamedModel(
            loaded.model, source, target, device=bench.device, read=read, changed=changed
        )
        calibration, notes, kept = prune_loaded(bench, method, allocation, loaded, streamed)
        if len(after) < len(parts.layers):
            raise PrunebenchError(
                f"'{cell.method.name}' left {len(parts.layers) - len(after)} layers unread",
                hint="its author should override `refuses_streaming`, or prune with `context.prune_linears`",
            )
        seed_all(cell.seed)
        with phases.phase("save"):
            streamed.copy_rest(_check_finite)
        with phases.phase("audit"):
            dense = dense_facts(loaded.model, [before[index] for index in kept])
            audited = audit(
                loaded.model, dense, kept, patterns_of(cell), [after[index] for index in kept]
            )
        made = PrunedCell(
            loaded,
            dense,
            audited,
            load_io(loaded.weight_bytes, loaded.seconds, None),
            calibration,
            notes,
            RecoveryResult(),
            method.reference,
        )
        write_pruning_file(
            aside, PruningFile(plain=True, shape=shape_of(loaded.model), made_by=made.made_by(cell))
        )
    return made


def check_streamable(cell: Cell, method: Method) -> None:
    """Raise PrunebenchError, with the reason, where the cell's model cannot be pruned layer by layer from its files."""
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
            hint="leave out --stream, or save it as safetensors first: prunebench prune MODEL dense --out FOLDER",
        )


def _check_finite(name: str, elements: torch.Tensor) -> None:
    if elements.is_floating_point() and not bool(torch.isfinite(elements).all()):
        raise not_finite(name)
