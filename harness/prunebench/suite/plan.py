"""From a suite to its cells: the grid in a stable order, and a selection of it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from prunebench.errors import PrunebenchError, did_you_mean
from prunebench.experiment.cell import Cell
from prunebench.store.plan_file import Plan
from prunebench.suite.load import Suite
from prunebench.suite.methods import DENSE, Treatment, needs

if TYPE_CHECKING:
    from prunebench.experiment.text import CalibrationSpec
    from prunebench.plugin.registry import Registry


def plan(suite: Suite, registry: Registry) -> Plan:
    """All cells of a suite, equal ones once.

    They are in the order of the file: models, methods, their options, calibrations, seeds.
    """
    # The first of equal cells stays, so that adding a duplicate to a suite changes no order.
    cells: dict[str, Cell] = {}
    for cell in _grid(suite, registry):
        cells.setdefault(cell.id, cell)
    every = tuple(cells.values())
    return Plan(
        suite=suite.name,
        title=suite.title,
        cells=every,
        suite_sha256=hashlib.sha256(suite.text.encode()).hexdigest(),
        gate=suite.gate,
        generation_gate=suite.generation_gate,
        expect=tuple(expected.among(every) for expected in suite.expect),
    )


def _grid(suite: Suite, registry: Registry) -> Iterator[Cell]:
    for model in suite.models:
        for treatment in suite.treatments:
            for calibration, seed in _samples(treatment, suite, registry):
                yield Cell(
                    model=model,
                    method=treatment.method,
                    allocation=treatment.allocation,
                    recovery=treatment.recovery,
                    calibration=calibration,
                    perplexity=suite.perplexity,
                    tasks=suite.tasks,
                    metrics=suite.metrics,
                    latency=suite.latency,
                    runtimes=suite.runtimes,
                    seed=seed,
                    device=suite.device,
                    threads=suite.threads,
                    gpus=suite.gpus,
                    keep_model=suite.keep_models,
                    time_limit_s=suite.time_limit_s,
                    memory_limit_bytes=suite.memory_limit_bytes,
                )


def _samples(
    treatment: Treatment, suite: Suite, registry: Registry
) -> Iterator[tuple[CalibrationSpec | None, int]]:
    """The calibrations and seeds of a treatment.

    A treatment that has no text has no calibration. One that does not read its text has one, and
    one that no seed changes has one seed: its other cells would repeat the first.
    """
    found = [needs(registry["method"][treatment.method.name].value, treatment.method)]
    if treatment.allocation is not None:
        kind = registry["allocation"][treatment.allocation.name].value
        found.append(needs(kind, treatment.allocation))
    reads_text = any(one.reads_text for one in found)
    # A repair draws its initial values and the order of its windows.
    uses_seed = treatment.recovery is not None or any(one.uses_seed for one in found)
    own = suite.calibration if treatment.calibration is None else treatment.calibration
    texts: Sequence[CalibrationSpec | None] = own if any(one.text for one in found) else ()
    for text in texts if reads_text else texts[:1] or (None,):
        sampled = reads_text and text is not None and text.drawn
        for seed in suite.seeds if uses_seed or sampled else suite.seeds[:1]:
            yield text, seed


def select(cells: Sequence[Cell], only: Sequence[str] = (), skip: Sequence[str] = ()) -> list[Cell]:
    """The cells that match a pattern of ``only`` (if there is one) and no pattern of ``skip``.

    A pattern is a method's name, a glob over labels ('wanda*2:4*') or names of models, or the first
    digits of an id. The dense cell of a model stays while one of the model's cells does, unless
    ``skip`` names it. Raises PrunebenchError if a pattern matches no cell, or none is left.
    """
    for option, pattern in (
        *(("--only", pattern) for pattern in only),
        *(("--skip", pattern) for pattern in skip),
    ):
        if not any(matches(cell, pattern) for cell in cells):
            names = {name for cell in cells for name in _names(cell)}
            raise PrunebenchError(
                f"{option} {pattern}: no cell matches", hint=did_you_mean(pattern, names)
            )
    skipped = {cell.id for cell in cells if any(matches(cell, pattern) for pattern in skip)}
    chosen = {
        cell.id for cell in cells if not only or any(matches(cell, pattern) for pattern in only)
    } - skipped
    # A pruned cell is judged by the dense cell of its own model.
    models = [cell.model for cell in cells if cell.id in chosen]
    left = [
        cell
        for cell in cells
        if cell.id in chosen
        or (cell.method.name == DENSE and cell.id not in skipped and cell.model in models)
    ]
    if not left:
        raise PrunebenchError(
            "--only and --skip leave no cell", hint="`prunebench plan` shows what there is"
        )
    return left


def matches(cell: Cell, pattern: str) -> bool:
    """Whether ``pattern`` names this cell."""
    # At least four digits: 'a' or 'be' would match ids by accident.
    by_id = re.fullmatch(r"[0-9a-f]{4,16}", pattern) is not None and cell.id.startswith(pattern)
    return by_id or any(fnmatchcase(name, pattern) for name in _names(cell))


def _names(cell: Cell) -> tuple[str, ...]:
    return cell.method.name, cell.label, cell.model.name
