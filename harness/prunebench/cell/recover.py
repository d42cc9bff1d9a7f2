"""The recovery of a cell: train the pruned model on its windows to repair it."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from prunebench.cell.setup import CellSetup, vocabulary_size
from prunebench.isolation.model_guard import ModelGuard
from prunebench.isolation.process_guard import guarded
from prunebench.model.dense_indices import DenseIndices
from prunebench.model.dense_source import CheckpointSource
from prunebench.plugin.api.context import Context
from prunebench.plugin.plugin_code import plugin_code
from prunebench.text.windows import calibration_windows

if TYPE_CHECKING:
    from prunebench.cell.phases import Phases
    from prunebench.model.load import LoadedModel
    from prunebench.plugin.api.recovery import Recovery

PHASE = "recover"


@dataclass(frozen=True)
class RecoveryResult:
    """What a recovery says about itself, and what it trained on; empty without a recovery."""

    notes: dict[str, Any] = field(default_factory=dict)
    tokens: int | None = None
    sha256: str | None = None
    """Of the training windows."""
    provenance: dict[str, Any] = field(default_factory=dict)

    def cost(self, phases: Phases) -> dict[str, Any]:
        """The fields of `Cost` that belong to the recovery."""
        if self.sha256 is None:
            return {}
        return {
            "recover_s": phases.seconds(PHASE),
            "recover_tokens": self.tokens,
            "recover_sha256": self.sha256,
        }


def recovery_of(setup: CellSetup) -> Recovery | None:
    """The recovery that the cell names. Raises PrunebenchError if no plugin registers it."""
    ref = setup.cell.recovery
    return None if ref is None else setup.plugin(ref, "recovery")


def recover(
    recovery: Recovery | None, setup: CellSetup, loaded: LoadedModel, left: DenseIndices
) -> RecoveryResult:
    """Repair the pruned model in place; side effects become flags.

    ``left`` is what the method left of the dense model.
    """
    cell, phases, model = setup.cell, setup.phases, loaded.model
    if recovery is None or cell.recovery is None:
        return RecoveryResult()
    with phases.phase("training text"):
        windows = calibration_windows(
            cell.recovery.data,
            loaded.tokenizer,
            vocabulary_size(model),
            cell.seed,
            setup.corpora,
        )
    context = Context(
        calibration=windows.tokens,
        seed=cell.seed,
        kept_layers=left.layers,
        progress=phases.progress,
        say=phases.say,
        log=logging.getLogger(f"prunebench.{cell.recovery.name}"),
        counted=windows.counted,
        dense_source=CheckpointSource(setup.folder, cell.model.dtype),
        checkpoints=setup.checkpoints(PHASE),
    )
    context.dense_indices = left  # if the recovery cuts too, it goes on counting
    guard = ModelGuard(model, "the recovery")
    with phases.phase(PHASE):
        with torch.enable_grad(), guarded("the recovery", setup.flags), plugin_code(recovery):
            recovery.recover(model, context)
        # Training mode and gradients are part of training, so the harness resets them itself and
        # the guard flags only what goes beyond.
        model.eval()
        for parameter in model.parameters():
            parameter.grad = None
            parameter.requires_grad = False
        guard.check(model, setup.flags)
    if context.adapter is not None:
        context.adapter.attach(model)
        context.notes["adapter_parameters"] = context.adapter.parameters
    provenance: dict[str, Any] = {
        "recovery_plugin": f"{cell.recovery.distribution} {cell.recovery.version}"
    }
    if recovery.reference is not None:
        provenance["recovery_reference"] = asdict(recovery.reference)
    return RecoveryResult(
        setup.plain_notes(context.notes, "the recovery"),
        context.trained_tokens or None,
        windows.sha256,
        provenance,
    )
