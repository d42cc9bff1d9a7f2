"""What a promise is, and the promises that every kind of plugin with options makes."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError

from prunebench.errors import PluginError, PrunebenchError
from prunebench.isolation.flags import Flags
from prunebench.suite.schema import CalibrationEntry


class BrokenPromiseError(AssertionError):
    """The plugin does not do what its contract says."""


class NotApplicableError(Exception):
    """A promise does not concern this plugin, or cannot be tried on this machine."""


class Trial(ABC):
    """A plugin with some options on one model family: what promises are tried on."""

    plugin: Any
    family: str

    @abstractmethod
    def ready(self) -> None:
        """Use the plugin once. Raises what its code raises."""

    @cached_property
    def flags(self) -> Flags:
        """What the plugin changed in this process, each time undone."""
        return Flags()

    def leaves_no_setting(self) -> None:
        """Raise BrokenPromiseError if the plugin changed something in this process."""
        promise(not self.flags.found, "; ".join(dict.fromkeys(self.flags.found)))

    @cached_property
    def failure(self) -> Exception | None:
        """What the plugin's code raises when it is used; then no promise can be tried."""
        try:
            self.ready()
        except Exception as error:
            return error
        return None

    @property
    def refusal(self) -> PrunebenchError | None:
        """The failure, if it is one that the plugin explains to its user: a refused family."""
        error = self.failure
        known = isinstance(error, PrunebenchError) and not isinstance(error, PluginError)
        return error if known else None  # type: ignore[return-value]


class Promise(NamedTuple):
    """One line of a contract."""

    name: str
    says: str
    """What the plugin does, in one line."""
    check: Callable[[Any], None]
    """Takes a trial. Raises BrokenPromiseError or NotApplicableError."""


def promise(kept: bool, message: str) -> None:
    """Raise BrokenPromiseError with ``message`` unless ``kept``."""
    if not kept:
        raise BrokenPromiseError(message)


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> str | None:
    """The first tensor that one side lacks or that differs in a bit; None if all agree."""
    for name in (*one, *(name for name in other if name not in one)):
        if name not in one or name not in other or not torch.equal(one[name], other[name]):
            return name
    return None


def repeats(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> None:
    """Promise that two runs with one seed gave the same tensors, bit for bit."""
    name = same(first, second)
    if name is None:
        return
    how = ""
    if name in first and name in second and first[name].shape == second[name].shape:
        # Rounding, or another draw? Who looks for the cause wants to know this first.
        gap = (first[name].double() - second[name].double()).abs()
        how = f": {int((gap != 0).sum())} of {gap.numel()} values, by up to {float(gap.max()):.2g}"
    raise BrokenPromiseError(f"two runs with one seed differ in {name}{how}")


def close(one: float, other: float, tolerance: float) -> bool:
    """Whether two numbers differ by at most ``tolerance``."""
    return math.isclose(one, other, rel_tol=0, abs_tol=tolerance)


def as_json(trial: Any) -> None:
    """Options survive a trip through a cell's JSON file, and notes can be written to the record."""
    options = trial.parsed()
    # Strict: lax parsing turns "1" into 1, and would hide that an option changed its type.
    again = type(options).model_validate_json(options.model_dump_json(by_alias=True), strict=True)
    promise(again == options, f"options {options!r} come back from JSON as {again!r}")
    try:
        json.dumps(trial.notes, allow_nan=False)
    except (TypeError, ValueError) as error:
        promise(False, f"context.notes is not JSON: {error}")


def documented(trial: Any) -> None:
    promise(bool((trial.plugin.__doc__ or "").strip()), "the class has no docstring")
    for name, option in trial.plugin.Options.model_fields.items():
        promise(
            bool(option.description),
            f"the option {name} has no description: Field(..., description='...')",
        )
    published = getattr(trial.plugin, "published_calibration", None)
    if published is not None:
        try:
            CalibrationEntry.model_validate(dict(published))
        except ValidationError as error:
            detail = error.errors()[0]
            promise(
                False,
                "published_calibration is not a suite's `calibration:`:"
                f" {'.'.join(map(str, detail['loc']))}: {detail['msg']}",
            )
