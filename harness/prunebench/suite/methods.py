"""The methods of a suite: names and options looked up, lists fanned out, each with what repairs the model after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunebench.experiment.plugins import AllocationRef, MethodRef, RecoveryRef, label_of
from prunebench.experiment.text import CalibrationSpec
from prunebench.plugin.suite_keys import ALLOCATION, CALIBRATION, RECOVERY
from prunebench.suite import allocations, recoveries
from prunebench.suite.options import combinations, look_up, name_and_options
from prunebench.suite.problems import Problems, absent

if TYPE_CHECKING:
    from prunebench.plugin.registry import Registry
    from prunebench.suite.yaml import Path

DENSE = "dense"


@dataclass(frozen=True)
class Treatment:
    """What is done to a model: a method with its options, what repairs the model after it, and the method's own text."""

    method: MethodRef
    recovery: RecoveryRef | None = None
    calibration: tuple[CalibrationSpec, ...] | None = None
    """None where the suite's is meant."""
    allocation: AllocationRef | None = None

    @property
    def label(self) -> str:
        """As `Cell.label`."""
        return label_of(self.method, self.allocation, self.recovery)


def outcome_varies(method: Any, *, sampled: bool) -> bool:
    """Whether the seed decides what a Method or Allocation class does; ``sampled``: calibration windows are drawn by the seed."""
    return bool(method.uses_seed or (method.needs_calibration and sampled))


def expand(
    entries: list[Any],
    registry: Registry,
    problems: Problems,
    training: recoveries.Training,
    own_text: Callable[[Any, Path], tuple[CalibrationSpec, ...]],
    *,
    calibrated: bool,
) -> list[Treatment]:
    """All methods of a suite with complete options and what repairs the model after each, `dense` before them.

    ``entries`` are the items of `methods`, in the order of the file; ``own_text`` looks up a method's own calibration
    section. What is wrong with them goes to ``problems``.
    """
    found: list[Treatment] = []
    if DENSE not in registry["method"]:
        problems.add(
            (),
            "the method 'dense', the baseline of every suite, is not available",
            absent(DENSE, None, registry),
        )
    else:
        found += [
            Treatment(MethodRef(**fields))
            for fields in combinations(registry["method"][DENSE], {}, (), problems)
        ]
    for index, entry in enumerate(entries):
        path: Path = ("methods", index)
        named = name_and_options(
            entry, path, problems, noun="method", example="{wanda: {sparsity: 0.5}}"
        )
        if named is None:
            continue
        name, options = named
        registered = look_up(
            name, registry["method"], (*path, name), registry, problems, noun="method"
        )
        if registered is None:
            continue
        spread: list[AllocationRef | None] = [None]
        place = (*path, name, ALLOCATION)
        if ALLOCATION in options:
            spread = list(allocations.expand(options[ALLOCATION], place, registry, problems))
        looking = [name] if registered.value.needs_calibration else []
        looking += [
            one.name
            for one in spread
            if one and registry["allocation"][one.name].value.needs_calibration
        ]
        own = None
        if CALIBRATION in options:
            at = (*path, name, CALIBRATION)
            own = own_text(options[CALIBRATION], at)
            if not looking:
                problems.add(
                    at, f"'{name}' looks at no text", "leave `calibration` out of its options"
                )
        elif looking and not calibrated:
            problems.add(
                (*path, name),
                f"'{looking[0]}' needs calibration and the suite has none",
                "add for example calibration: {corpus: boolq-passages, windows: 16, length: 512}",
            )
        repairs: list[RecoveryRef | None] = [None]
        if RECOVERY in options:
            at = (*path, name, RECOVERY)
            repairs = list(recoveries.expand(options[RECOVERY], at, registry, problems, training))
            if name == DENSE and repairs != [None]:
                problems.add(
                    at,
                    "the dense model is what every cell is held against, and takes no recovery",
                    "for a trained control, write magnitude: {sparsity: 0, recovery: ...}",
                )
        rest = {
            key: value
            for key, value in options.items()
            if key not in {RECOVERY, CALIBRATION, ALLOCATION}
        }
        for fields in combinations(registered, rest, (*path, name), problems):
            method = MethodRef(**fields)
            fitting = [
                one
                for one in spread
                if allocations.check_pair(registered, method, one, place, problems)
            ]
            found += [Treatment(method, repair, own, one) for one in fitting for repair in repairs]
    return found
