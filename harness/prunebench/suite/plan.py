"""From a suite to its cells: the grid in a stable order, each experiment once, and a selection of them."""

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
from prunebench.suite.methods import DENSE, outcome_varies

if TYPE_CHECKING:
    from prunebench.plugin.registry import Registry

SEEDLESS = ("as-is", "consecutive")
"""Samplers that give the same windows whatever the seed."""


def plan(suite: Suite, registry: Registry) -> Plan:
    """All cells of a suite: model by model, in each the methods, options, calibrations and seeds, as written."""
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
        expect=tuple(expected.among(every) for expected in suite.expect),
    )


def _grid(suite: Suite, registry: Registry) -> Iterator[Cell]:
    for model in suite.models:
        for treatment in suite.treatments:
            method, recovery = treatment.method, treatment.recovery
            kind = registry["method"][method.name].value
            own = suite.calibration if treatment.calibration is None else treatment.calibration
            kinds = [kind]
            if treatment.allocation is not None:
                kinds.append(registry["allocation"][treatment.allocation.name].value)
            calibrations = own if any(each.needs_calibration for each in kinds) else (None,)
            for calibration in calibrations:
                sampled = calibration is not None and calibration.sampler not in SEEDLESS
                varies = recovery is not None or any(
                    outcome_varies(each, sampled=sampled) for each in kinds
                )
                for seed in suite.seeds if varies else suite.seeds[:1]:
                    yield Cell(
                        model=model,
                        method=method,
                        allocation=treatment.allocation,
                        recovery=recovery,
                        calibration=calibration,
                        perplexity=suite.perplexity,
                        tasks=suite.tasks,
                        metrics=suite.metrics,
                        latency=suite.latency,
                        seed=seed,
                        device=suite.device,
                        threads=suite.threads,
                        gpus=suite.gpus,
                        keep_model=suite.keep_models,
                        time_limit_s=suite.time_limit_s,
                        memory_limit_bytes=suite.memory_limit_bytes,
                    )


def select(cells: Sequence[Cell], only: Sequence[str] = (), skip: Sequence[str] = ()) -> list[Cell]:
    """The cells that a pattern of ``only`` matches (all if there is none) and no pattern of ``skip`` does.

    A pattern is a method's name, a glob over labels ('wanda*2:4*') or over models' names, or the beginning of an id.
    The dense cell of a model stays as long as one of its cells does, unless ``skip`` names it.
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
    wanted = {
        cell.id for cell in cells if not only or any(matches(cell, pattern) for pattern in only)
    } - skipped
    models = [cell.model for cell in cells if cell.id in wanted]
    chosen = [
        cell
        for cell in cells
        if cell.id in wanted
        or (cell.method.name == DENSE and cell.id not in skipped and cell.model in models)
    ]
    if not chosen:
        raise PrunebenchError(
            "--only and --skip leave no cell", hint="`prunebench plan` shows what there is"
        )
    return chosen


def matches(cell: Cell, pattern: str) -> bool:
    """Whether ``pattern`` names this cell."""
    by_id = re.fullmatch(r"[0-9a-f]{4,16}", pattern) is not None and cell.id.startswith(pattern)
    return by_id or any(fnmatchcase(name, pattern) for name in _names(cell))


def _names(cell: Cell) -> tuple[str, ...]:
    return cell.method.name, cell.label, cell.model.name
