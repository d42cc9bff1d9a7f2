"""From a cell to its pruned model: fetch, load, calibrate, prune, recover, audit.

source -> dense model -> calibration windows -> prune -> recover -> audit
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from prunebench.cell.lookup import plugin_of
from prunebench.cell.notes import plain
from prunebench.cell.phases import Phases
from prunebench.cell.placed import countable, load_placed, stays_as_it_is
from prunebench.cell.recover import RecoveryResult, recover, recovery_of
from prunebench.errors import PrunebenchError
from prunebench.experiment.cell import Cell
from prunebench.isolation.flags import Flags
from prunebench.isolation.model_guard import ModelGuard
from prunebench.isolation.process_guard import guarded
from prunebench.measure.audit import DenseFacts, audit, dense_facts
from prunebench.measure.speed.io import disk_read_bytes, load_io
from prunebench.model.anatomy import anatomy
from prunebench.model.fetch import fetch_checkpoint
from prunebench.model.load import LoadedModel
from prunebench.plugin.api.allocation import Allocation, allocate
from prunebench.plugin.api.context import Context
from prunebench.plugin.api.method import pattern_of
from prunebench.plugin.host import load_plugins
from prunebench.plugin.registry import Registry
from prunebench.record.audit import Audit
from prunebench.record.io import LoadIO
from prunebench.text.windows import Windows, calibration_windows

if TYPE_CHECKING:
    from prunebench.layerwise.device_moves import LayerSource
    from prunebench.measure.quality.task_data import TaskData
    from prunebench.plugin.api.method import Method, Reference
    from prunebench.text.corpus import Corpus


@dataclass
class Workbench:
    """What the phases of one cell share."""

    cell: Cell
    registry: Registry
    phases: Phases
    device: str
    layer_device: torch.device | None = None
    """Where a layer at a time is pruned, if that is elsewhere than where the model lies."""
    folder: Path = Path()
    flags: Flags = field(default_factory=Flags)
    """What plugins changed for others."""

    @property
    def corpora(self) -> dict[str, Corpus]:
        return self.registry.registered("corpus")

    @property
    def task_data(self) -> dict[str, TaskData]:
        return self.registry.registered("task data")

    def load(self, *, as_it_is: bool = True) -> LoadedModel:
        """The dense model; ``as_it_is``: nothing will be changed in it."""
        return load_placed(self.cell.model, self.folder, self.device, as_it_is=as_it_is)


@dataclass(frozen=True)
class PrunedCell:
    """A pruned model and what is known of its making."""

    loaded: LoadedModel
    dense: DenseFacts
    audit: Audit
    load: LoadIO
    calibration: Windows | None
    notes: dict[str, Any]
    recovered: RecoveryResult
    reference: Reference | None

    def made_by(self, cell: Cell) -> dict[str, Any]:
        """What the plan file says of the model's origin; for people."""
        told: dict[str, Any] = {
            "prunebench": version("prunebench"),
            "model": cell.model.identity(),
            "method": cell.method.name,
            "options": cell.method.options,
            "seed": cell.seed,
            "kept_layers": self.audit.kept_layers,
        }
        if cell.calibration is not None and self.calibration is not None:
            told["calibration"] = {
                **cell.calibration.model_dump(mode="json", exclude={"corpus"}),
                "corpus": cell.calibration.corpus.name,
                "sha256": self.calibration.sha256,
            }
        if cell.allocation is not None:
            told["allocation"] = {"name": cell.allocation.name, "options": cell.allocation.options}
        if cell.recovery is not None:
            told["recovery"] = {"name": cell.recovery.name, "options": cell.recovery.options}
        return told


def workbench(cell: Cell, phases: Phases, layer_device: str | None = None) -> Workbench:
    """Prepare this process for ``cell``: threads, seeds, plugins, devices."""
    if cell.threads is not None:
        torch.set_num_threads(cell.threads)
    flags = Flags()
    with guarded("a plugin's import", flags):
        registry = load_plugins()
    seed_all(cell.seed)
    device = _device(cell.device)
    if layer_device is None and cell.model.placement is not None and device != "cpu":
        layer_device = device  # the model is pruned in host memory, and spread afterwards
    place = None if layer_device is None else torch.device(_device(layer_device))
    return Workbench(cell, registry, phases, device, place, flags=flags)


def build_pruned_model(bench: Workbench) -> PrunedCell:
    """Load, prune, recover and audit. Raises what a plugin raises, and PrunebenchError for what a user can mend."""
    cell, phases = bench.cell, bench.phases
    method: Method = plugin_of(cell.method, "method", bench.registry)
    allocation, recovery = allocation_of(cell, bench.registry), recovery_of(cell, bench.registry)
    with phases.phase("fetch"):
        bench.folder = fetch_checkpoint(cell.model)
    with phases.phase("load"):
        before = disk_read_bytes()
        loaded = bench.load(as_it_is=stays_as_it_is(method, recovery))
        after = disk_read_bytes()
    read = None if before is None or after is None else after - before
    with phases.phase("audit"):
        counted, counts = countable(loaded, bench.folder, cell.model.dtype, patterns_of(cell))
        dense = dense_facts(counted, counts)
    calibration, notes, kept = prune_loaded(bench, method, allocation, loaded)
    recovered = recover(recovery, cell, loaded, kept, bench.corpora, phases, bench.flags)
    seed_all(cell.seed)
    with phases.phase("audit"):
        audited = audit(counted, dense, kept, patterns_of(cell), counts)
    load_result = load_io(loaded.weight_bytes, loaded.seconds, read, transfers=loaded.transfers)
    return PrunedCell(
        loaded, dense, audited, load_result, calibration, notes, recovered, method.reference
    )


def prune_loaded(
    bench: Workbench,
    method: Method,
    allocation: Allocation | None,
    loaded: LoadedModel,
    lender: LayerSource | None = None,
) -> tuple[Windows | None, dict[str, Any], list[int]]:
    """Prune the loaded model in place; gives the calibration tokens, the method's notes and the layers that stay.

    ``lender``: where its layers come from and go to, if they are not in memory.
    """
    cell, phases = bench.cell, bench.phases
    windows = None
    if cell.calibration is not None:
        with phases.phase("calibration text"):
            windows = calibration_windows(
                cell.calibration,
                loaded.tokenizer,
                vocabulary(loaded.model),
                cell.seed,
                bench.corpora,
            )
    context = Context(
        calibration=None if windows is None else windows.tokens,
        seed=cell.seed,
        kept_layers=list(range(len(anatomy(loaded.model).layers))),
        progress=phases.progress,
        log=logging.getLogger(f"prunebench.{cell.method.name}"),
        device=bench.layer_device,
        lender=lender,
    )
    guard = ModelGuard(loaded.model, "the method")
    with phases.phase("prune"), torch.no_grad(), guarded("the method", bench.flags):
        if allocation is not None:
            context.shares = allocate(allocation, loaded.model, method.options.sparsity, context)
        method.prune(loaded.model, context)
        if allocation is not None and not context.went_by_shares:
            raise PrunebenchError(
                f"'{cell.method.name}' pruned without looking at the allocation '{allocation.name}'",
                hint="its author should override `refuses_allocation`, or prune with `context.prune_linears`",
            )
    with phases.phase("check"):
        guard.check(loaded.model, bench.flags)
    return windows, plain(context.notes, "the method", bench.flags), context.kept_layers


def allocation_of(cell: Cell, registry: Registry) -> Allocation | None:
    return None if cell.allocation is None else plugin_of(cell.allocation, "allocation", registry)


def patterns_of(cell: Cell) -> Sequence[tuple[int, int]]:
    """2:4 is what hardware can use, so it is always checked; and what was asked for."""
    asked = pattern_of(cell.method.options.get("sparsity", 0.0))
    return sorted({(2, 4), (asked.keep, asked.of)} if asked else {(2, 4)})


def vocabulary(model: Any) -> int:
    return int(model.get_input_embeddings().num_embeddings)


def _device(wanted: str) -> str:
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise PrunebenchError(
            f"device '{wanted}': torch sees no GPU", hint="set `device: cpu` or `device: auto`"
        )
    return wanted


def seed_all(seed: int) -> None:
    """Seed torch, numpy and random."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - a plugin may draw from the global generator
    random.seed(seed)
