"""How much work a cell is, before anything is loaded: a lower bound that ranks cells.

Tasks are left out: lm-eval has to build their prompts before their tokens are known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunebench.suite.methods import DENSE, needs
from prunebench.training.settings import TrainingSettings

if TYPE_CHECKING:
    from prunebench.experiment.cell import Cell
    from prunebench.experiment.plugins import RecoveryRef
    from prunebench.plugin.registry import Registry

WARMUP_ROUNDS = 1
TRAINING_PASSES = 3
"""Forward, and backward through activations and through weights."""
FLOP_PER_PARAMETER = 2
"""One multiplication and one addition per weight and token; attention scores are left out."""


@dataclass(frozen=True)
class Estimate:
    """Tokens that go through the model, and floating-point operations; None if not known yet."""

    tokens: int | None
    flop: int | None


def estimate(cell: Cell, registry: Registry) -> Estimate:
    """The work of one cell.

    Calibration tokens count twice for methods that go layer by layer (one pass for the statistics,
    one through the pruned layer), and once for other methods and for an allocation. Training tokens
    of a recovery, or of a method that says how it trains, count three times in every epoch, and
    held-out ones once in every validation.
    Timing counts the least number of rounds; for a pruned model also the rounds of the dense model
    between them.

    The result is None for calibration by rows, for perplexity over all windows of a corpus, or in
    windows as long as the model accepts; the operations are None for a model whose size is not
    known.
    """
    data = None if cell.recovery is None else cell.recovery.data
    if any(spec is not None and spec.tokens is None for spec in (cell.calibration, data)):
        return Estimate(None, None)
    tokens = _calibration_tokens(cell, registry)
    if cell.recovery is not None:
        recovery = registry["recovery"][cell.recovery.name].value
        tokens += _training_tokens(cell.recovery, recovery)
    for spec in cell.perplexity:
        if spec.windows is None or spec.length is None:
            return Estimate(None, None)
        tokens += spec.windows * spec.length
    # A pruned model is timed in turns with the dense one, to cancel drifts of the machine.
    models = 1 if cell.method.name == DENSE else 2
    for shape in cell.latency:
        rounds = shape.min_rounds + WARMUP_ROUNDS
        tokens += models * rounds * shape.batch_size * (shape.prompt + shape.new_tokens)
    size = cell.model.parameters
    return Estimate(tokens, None if size is None else FLOP_PER_PARAMETER * size * tokens)


def total(estimates: Iterable[Estimate]) -> Estimate:
    """The sum; None if one of them is None."""
    several = list(estimates)
    tokens = [one.tokens for one in several if one.tokens is not None]
    flop = [one.flop for one in several if one.flop is not None]
    return Estimate(
        sum(tokens) if len(tokens) == len(several) else None,
        sum(flop) if len(flop) == len(several) else None,
    )


def _calibration_tokens(cell: Cell, registry: Registry) -> int:
    if cell.calibration is None:
        return 0
    method = registry["method"][cell.method.name].value
    passes = 0
    if needs(method, cell.method).reads_text:
        passes += 2 if getattr(method, "statistics", ()) else 1
    windows, length = cell.calibration.windows or 0, cell.calibration.length
    options = method.Options.model_validate(cell.method.options)
    training = method.training_for(options, windows) if windows else None
    trained = 0 if training is None else TRAINING_PASSES * training.windows_seen(windows) * length
    if cell.allocation is not None:
        kind = registry["allocation"][cell.allocation.name].value
        passes += needs(kind, cell.allocation).reads_text
    return passes * (cell.calibration.tokens or 0) + trained


def _training_tokens(recovery: RecoveryRef, kind: Any) -> int:
    options = kind.Options.model_validate(recovery.options)
    windows, length = recovery.data.windows or 0, recovery.data.length
    # A recovery with options of its own is taken to read its windows once.
    if not isinstance(options, TrainingSettings):
        return TRAINING_PASSES * windows * length
    held_out = options.held_out(windows)
    validations = math.ceil(options.steps(windows - held_out) / options.eval_steps)
    seen = options.windows_seen(windows - held_out)
    return (TRAINING_PASSES * seen + validations * held_out) * length
