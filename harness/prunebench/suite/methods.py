"""The methods of a suite: names and options looked up, lists fanned out, each with what repairs the model after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunebench.calibration.spec import CalibrationSpec
from prunebench.cell.spec import MethodRef, RecoveryRef
from prunebench.errors import did_you_mean
from prunebench.plugin.recovery import CALIBRATION, KEY
from prunebench.suite import recoveries
from prunebench.suite.options import combinations, name_and_options
from prunebench.suite.problems import Problems, absent

if TYPE_CHECKING:
    from prunebench.plugin.host import Registry
    from prunebench.suite.yaml import Path

DENSE = "dense"


@dataclass(frozen=True)
class Treatment:
    """What is done to a model: a method with its options, what repairs the model after it, and the method's own text."""

    method: MethodRef
    recovery: RecoveryRef | None = None
    calibration: tuple[CalibrationSpec, ...] | None = None
    """None where the suite's is meant."""

    @property
    def label(self) -> str:
        """As `Cell.label`."""
        return self.method.label if self.recovery is None else f"{self.method.label} + {self.recovery.label}"


def outcome_varies(method: Any, *, sampled: bool) -> bool:
    """Whether the seed decides what a Method class does; ``sampled``: calibration windows are drawn by the seed."""
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
    if DENSE not in registry.methods:
        problems.add(
            (),
            "the method 'dense', the baseline of every suite, is not available",
            absent(DENSE, None, registry),
        )
    else:
        found += [Treatment(MethodRef(**fields)) for fields in combinations(registry.methods[DENSE], {}, (), problems)]
    for index, entry in enumerate(entries):
        path: Path = ("methods", index)
        named = name_and_options(entry, path, problems, noun="method", example="{wanda: {sparsity: 0.5}}")
        if named is None:
            continue
        name, options = named
        registered = registry.methods.get(name)
        if registered is None:
            problems.add(
                (*path, name), f"unknown method '{name}'", absent(name, did_you_mean(name, registry.methods), registry)
            )
            continue
        own = None
        if CALIBRATION in options:
            at = (*path, name, CALIBRATION)
            own = own_text(options[CALIBRATION], at)
            if not registered.value.needs_calibration:
                problems.add(at, f"'{name}' looks at no text", "leave `calibration` out of its options")
        elif registered.value.needs_calibration and not calibrated:
            problems.add(
                (*path, name),
                f"'{name}' needs calibration and the suite has none",
                "add for example calibration: {corpus: boolq-passages, windows: 16, length: 512}",
            )
        repairs: list[RecoveryRef | None] = [None]
        if KEY in options:
            at = (*path, name, KEY)
            repairs = list(recoveries.expand(options[KEY], at, registry, problems, training))
            if name == DENSE and repairs != [None]:
                problems.add(
                    at,
                    "the dense model is what every cell is held against, and takes no recovery",
                    "for a trained control, write magnitude: {sparsity: 0, recovery: ...}",
                )
        rest = {key: value for key, value in options.items() if key not in {KEY, CALIBRATION}}
        for fields in combinations(registered, rest, (*path, name), problems):
            found += [Treatment(MethodRef(**fields), repair, own) for repair in repairs]
    return found
