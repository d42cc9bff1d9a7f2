"""The recovery of a cell: found among the plugins, given its training windows, run on the pruned model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from prunebench.cell.lookup import plugin_of
from prunebench.cell.notes import plain
from prunebench.isolation.flags import Flags
from prunebench.isolation.model_guard import ModelGuard
from prunebench.isolation.process_guard import guarded
from prunebench.plugin.api.context import Context
from prunebench.text.windows import calibration_windows

if TYPE_CHECKING:
    from prunebench.cell.phases import Phases
    from prunebench.experiment.cell import Cell
    from prunebench.model.load import LoadedModel
    from prunebench.plugin.api.recovery import Recovery
    from prunebench.plugin.registry import Registry
    from prunebench.text.corpus import Corpus

PHASE = "recover"


@dataclass(frozen=True)
class RecoveryResult:
    """What a recovery says of itself, and what it saw. All empty for a cell without one."""

    notes: dict[str, Any] = field(default_factory=dict)
    tokens: int | None = None
    sha256: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def cost(self, phases: Phases) -> dict[str, Any]:
        """The keys of `Cost` that belong to the recovery."""
        if self.sha256 is None:
            return {}
        return {
            "recover_s": phases.seconds(PHASE),
            "recover_tokens": self.tokens,
            "recover_sha256": self.sha256,
        }


def recovery_of(cell: Cell, registry: Registry) -> Recovery | None:
    """The recovery that the cell names. Raises PrunebenchError where no plugin registers it."""
    if cell.recovery is None:
        return None
    recovery: Recovery = plugin_of(cell.recovery, "recovery", registry)
    return recovery


def recover(
    recovery: Recovery | None,
    cell: Cell,
    loaded: LoadedModel,
    kept_layers: list[int],
    corpora: Mapping[str, Corpus],
    phases: Phases,
    flags: Flags,
) -> RecoveryResult:
    """Repair the pruned model in place, in a phase of its own; what it changes for others goes to ``flags``."""
    if recovery is None or cell.recovery is None:
        return RecoveryResult()
    model = loaded.model
    with phases.phase("training text"):
        vocabulary = int(model.get_input_embeddings().num_embeddings)
        windows = calibration_windows(
            cell.recovery.data, loaded.tokenizer, vocabulary, cell.seed, corpora
        )
    context = Context(
        calibration=windows.tokens,
        seed=cell.seed,
        kept_layers=kept_layers,
        progress=phases.progress,
        log=logging.getLogger(f"prunebench.{cell.recovery.name}"),
    )
    guard = ModelGuard(model, "the recovery")
    with phases.phase(PHASE):
        with torch.enable_grad(), guarded("the recovery", flags):
            recovery.recover(model, context)
        model.eval()
        for parameter in model.parameters():
            parameter.grad = None
            parameter.requires_grad = False
        guard.check(model, flags)
    provenance: dict[str, Any] = {
        "recovery_plugin": f"{cell.recovery.distribution} {cell.recovery.version}"
    }
    if recovery.reference is not None:
        provenance["recovery_reference"] = asdict(recovery.reference)
    return RecoveryResult(
        plain(context.notes, "the recovery", flags),
        context.trained_tokens or None,
        windows.sha256,
        provenance,
    )
