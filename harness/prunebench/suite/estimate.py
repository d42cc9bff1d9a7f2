"""How much work a cell is, before anything is loaded: a lower bound that ranks cells and totals a suite.

Tasks are left out: their tokens are known when lm-eval has made its prompts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunebench.suite.methods import DENSE
from prunebench.training.settings import TrainingSettings

if TYPE_CHECKING:
    from prunebench.experiment.cell import Cell
    from prunebench.experiment.plugins import RecoveryRef
    from prunebench.plugin.registry import Registry

WARMUP_ROUNDS = 1
TRAINING_PASSES = 3  # forward, and backward through activations and weights
FLOP_PER_PARAMETER = (
    2  # one multiplication and one addition per weight and token; attention scores are left out
)


@dataclass(frozen=True)
class Estimate:
    """Tokens that go through the model, and floating-point operations for them; None where not known beforehand."""

    tokens: int | None
    flop: int | None


def estimate(cell: Cell, registry: Registry) -> Estimate:
    """The work of one cell.

    Calibration tokens count twice for methods that go layer by layer (one pass for the statistics, one through the
    pruned layer) and once for the others and for an allocation; training tokens of a recovery three times, in every epoch. Timing counts the
    least number of rounds, and for a pruned model the dense rounds between them. Unknown: perplexity over all windows of
    a corpus or in windows as long as the model takes, a model whose size is not known.
    """
    method = registry["method"][cell.method.name].value
    tokens = _calibration_tokens(cell, method) if method.needs_calibration else 0
    if (
        cell.allocation is not None
        and registry["allocation"][cell.allocation.name].value.needs_calibration
    ):
        tokens += 0 if cell.calibration is None else cell.calibration.tokens
    if cell.recovery is not None:
        tokens += _training_tokens(cell.recovery, registry["recovery"][cell.recovery.name].value)
    for spec in cell.perplexity:
        if spec.windows is None or spec.length is None:
            return Estimate(None, None)
        tokens += spec.windows * spec.length
    models = 1 if cell.method.name == DENSE else 2
    for shape in cell.latency:
        rounds = shape.min_rounds + WARMUP_ROUNDS
        tokens += models * rounds * shape.batch_size * (shape.prompt + shape.new_tokens)
    size = cell.model.parameters
    return Estimate(tokens, None if size is None else FLOP_PER_PARAMETER * size * tokens)


def total(estimates: Iterable[Estimate]) -> Estimate:
    """The sum; None where one is None."""
    several = list(estimates)
    tokens = [each.tokens for each in several if each.tokens is not None]
    flop = [each.flop for each in several if each.flop is not None]
    return Estimate(
        sum(tokens) if len(tokens) == len(several) else None,
        sum(flop) if len(flop) == len(several) else None,
    )


def _training_tokens(recovery: RecoveryRef, kind: Any) -> int:
    """Passes over its windows as its options say; once where they are none of `TrainingOptions`."""
    options = kind.Options.model_validate(recovery.options)
    windows = recovery.data.windows
    if isinstance(options, TrainingSettings):
        windows = options.windows_seen(windows)
    return TRAINING_PASSES * windows * recovery.data.length


def _calibration_tokens(cell: Cell, method: Any) -> int:
    if cell.calibration is None:
        return 0
    passes = 2 if getattr(method, "statistics", ()) else 1
    return passes * cell.calibration.tokens
