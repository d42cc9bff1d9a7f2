"""The dense model of a cell, beside the pruned one."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import torch

from prunebench.cell.profile import too_large
from prunebench.errors import PrunebenchError

if TYPE_CHECKING:
    from prunebench.cell.pipeline import PrunedCell
    from prunebench.cell.setup import CellSetup
    from prunebench.experiment.cell import Cell
    from prunebench.measure.quality.text_passes import TextPasses


class DenseModel:
    """The dense model, loaded when a metric first asks for it, and what its passes left."""

    def __init__(self, setup: CellSetup, pruned: PrunedCell, passes: TextPasses) -> None:
        self._setup = setup
        self._pruned = pruned
        self._model: Any = None
        self.passes = passes

    def load(self) -> Any:
        """Raises PrunebenchError if it does not fit into memory beside the pruned model."""
        if is_dense(self._setup.cell):
            return self._pruned.loaded.model
        if self._model is None:
            if reason := too_large(self._pruned.audit, self._pruned.loaded.model):
                raise PrunebenchError(
                    reason.partition(":")[0], hint="run it where both fit, or leave this metric out"
                )
            self._model = self._setup.load().model
        return self._model

    def close(self) -> None:
        """Free memory and disk: the next phase measures what generation takes."""
        self.passes.close()
        if self._model is not None:
            self._model = None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def is_dense(cell: Cell) -> bool:
    """Whether nothing changes the cell's model, so that it is the dense model itself."""
    method = cell.method
    # By name: a plugin that says that it changes nothing might, and other cells would use it.
    return cell.recovery is None and (method.name, method.distribution) == ("dense", "prunebench")
