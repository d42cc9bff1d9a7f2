"""`recovery:` among a method's options: names and options looked up, lists fanned out, training windows found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from prunebench.experiment.plugins import RecoveryRef
from prunebench.experiment.text import CalibrationSpec
from prunebench.plugin.suite_keys import DATA
from prunebench.suite.options import combinations, each_or_none, look_up, name_and_options
from prunebench.suite.problems import Problems, fields_of
from prunebench.suite.schema import TrainingEntry

if TYPE_CHECKING:
    from prunebench.plugin.registry import Registry
    from prunebench.suite.yaml import Path

EXAMPLE = "data: {corpus: boolq-passages, windows: 64, length: 256}"


@dataclass(frozen=True)
class Training:
    """Where training windows come from."""

    default: CalibrationSpec | None
    """The suite's calibration, for recoveries without `data:`."""
    resolve: Callable[[TrainingEntry, Path], CalibrationSpec | None]
    """Looks up what a `data:` section names; None, and a problem noted, where that cannot be had."""
    calibrated: bool
    """Whether the suite has a calibration, be it a wrong one."""


def expand(
    value: Any, path: Path, registry: Registry, problems: Problems, training: Training
) -> Iterator[RecoveryRef | None]:
    """The recoveries that ``value`` at ``path`` names, None for none; what is wrong goes to ``problems``."""
    for entry, here in each_or_none(value, path, "recovery", problems):
        if entry is None:
            yield None
            continue
        example = "{lora: {rank: 8}}"
        named = name_and_options(entry, here, problems, noun="recovery", example=example)
        if named is None:
            continue
        name, options = named
        at = (*here, name) if isinstance(entry, dict) else here
        registered = look_up(name, registry["recovery"], at, registry, problems, noun="recovery")
        if registered is None:
            continue
        data = _data(name, options, at, problems, training)
        rest = {key: value for key, value in options.items() if key != DATA}
        for fields in combinations(
            registered, rest, at, problems
        ):  # checked also where the data is wrong
            if data is not None:
                yield RecoveryRef(**fields, data=data)


def _data(
    name: str, options: dict[str, Any], path: Path, problems: Problems, training: Training
) -> CalibrationSpec | None:
    if options.get(DATA) is None:
        if training.default is None and not training.calibrated:
            problems.add(
                path,
                f"'{name}' needs text to train on, and neither it nor the suite's calibration names one",
                f"add for example {EXAMPLE} to the options of {name}",
            )
        return training.default
    at = (*path, DATA)
    known = fields_of(TrainingEntry)
    try:
        entry = TrainingEntry.model_validate(options[DATA])
    except ValidationError as error:
        problems.add_validation(at, options[DATA], error, lambda inside: None if inside else known)
        return None
    return training.resolve(entry, at)
