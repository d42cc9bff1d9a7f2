"""What would fail only after the model is pruned, found as soon as it is loaded.

A suite is compared with models on this machine when it is planned; others are known only now.
"""

from __future__ import annotations

from prunebench.errors import PrunebenchError
from prunebench.experiment.cell import Cell
from prunebench.experiment.inputs import inputs_of
from prunebench.measure.quality.task_needs import task_fault
from prunebench.model.load import LoadedModel
from prunebench.model.positions import check_positions
from prunebench.model.special_tokens import tokens_of


def check_before_pruning(cell: Cell, loaded: LoadedModel) -> None:
    """Raise PrunebenchError for windows that are longer than the model, and for tasks without the
    special tokens that they need.
    """
    for asked in inputs_of(cell):
        check_positions(loaded.model, asked.tokens, asked.what)
    if fault := task_fault(cell.tasks, tokens_of(loaded.tokenizer)):
        raise PrunebenchError(f"the model '{cell.model.name}': {fault.message}", hint=fault.hint)
