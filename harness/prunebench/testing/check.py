"""The contract without pytest: try every promise on every family, and give one verdict for each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from prunebench.errors import PluginError, PrunebenchError, first_line
from prunebench.testing.allocations import ALLOCATION_PROMISES, AllocationTrial
from prunebench.testing.methods import METHOD_PROMISES
from prunebench.testing.metrics import METRIC_PROMISES, MetricTrial
from prunebench.testing.promises import BrokenPromiseError, NotApplicableError, Promise
from prunebench.testing.random_control import WORSE
from prunebench.testing.recoveries import RECOVERY_PROMISES, RecoveryTrial
from prunebench.testing.runtimes import RUNTIME_PROMISES, RuntimeTrial
from prunebench.testing.trial import MethodTrial

if TYPE_CHECKING:
    from prunebench.plugin.registry import Kind, PluginEntry

CONTRACTS: Mapping[Kind, tuple[Any, Sequence[Promise]]] = {
    "method": (MethodTrial, METHOD_PROMISES),
    "allocation": (AllocationTrial, ALLOCATION_PROMISES),
    "recovery": (RecoveryTrial, RECOVERY_PROMISES),
    "metric": (MetricTrial, METRIC_PROMISES),
    "runtime": (RuntimeTrial, RUNTIME_PROMISES),
}
"""The kinds that have a contract, with what their promises are tried on."""


@dataclass(frozen=True)
class Verdict:
    """Whether a promise is kept; ``details`` say where it was broken or why it was not tried."""

    promise: Promise
    status: Literal["kept", "broken", "not tried", "hint"]
    details: str


def check(
    entry: PluginEntry, options: Mapping[str, Any], families: Sequence[str]
) -> Iterator[Verdict]:
    """Try every promise of a registered plugin.

    If its code fails on a family, or refuses all of them, that is one broken promise, the first,
    and the others are not tried there. Raises PrunebenchError if plugins of its kind have no
    contract.
    """
    if entry.kind not in CONTRACTS:
        raise PrunebenchError(
            f"'{entry.name}' is a {entry.kind}; only these have a contract: {', '.join(CONTRACTS)}",
            hint="try it in a suite: prunebench run SUITE",
        )
    trial_of, promises = CONTRACTS[entry.kind]
    # One trial for all promises: it prunes once and keeps the result.
    trials = [trial_of(entry.value, family, options) for family in families]
    usable, refused, faults = _tried(trials)
    if not usable and not faults:
        faults = refused
    if faults:
        yield Verdict(promises[0], "broken", _together(faults))
    broken = bool(faults)
    for promise in promises[1:] if faults else promises:
        # A plugin that fails without a network is told that as well.
        tried = trials if promise.name == "offline" and faults else usable
        if tried:
            verdict = _verdict(promise, tried, {} if faults else refused)
            broken = broken or verdict.status == "broken"
            yield verdict
        else:
            yield Verdict(promise, "not tried", f"see '{promises[0].says}'")
    if not broken and entry.kind == "method" and (hint := _worse_than_random(usable)):
        yield Verdict(WORSE, "hint", hint)


def _tried(trials: Sequence[Any]) -> tuple[list[Any], dict[str, str], dict[str, str]]:
    """The trials that work, the families that the plugin refuses and those on which it fails.

    The families are given with what the plugin said.
    """
    usable, refused, faults = [], {}, {}
    for trial in trials:
        error = trial.failure
        if error is None:
            usable.append(trial)
        elif trial.refusal is not None:
            refused[trial.family] = f"refused: {error}"
        else:
            faults[trial.family] = _said(error)
    return usable, refused, faults


def _said(error: Exception) -> str:
    if isinstance(error, PrunebenchError | BrokenPromiseError):
        return str(error)
    return f"{type(error).__name__}: {first_line(error)}"


def _verdict(promise: Promise, trials: Sequence[Any], refused: Mapping[str, str]) -> Verdict:
    broken: dict[str, str] = {}
    untried: dict[str, str] = dict(refused)
    kept = 0
    for trial in trials:
        try:
            promise.check(trial)
            kept += 1
        except NotApplicableError as reason:
            untried[trial.family] = str(reason)
        except BrokenPromiseError as error:
            broken[trial.family] = str(error)
        except Exception as error:  # the plugin's own code
            if isinstance(error, PrunebenchError) and not isinstance(error, PluginError):
                untried[trial.family] = f"refused: {error}"
            elif trial.failure is None:  # otherwise the first promise says it
                broken[trial.family] = _said(error)
    if broken:
        return Verdict(promise, "broken", _together(broken))
    # With every family it says the same, no family needs a name.
    said = set(untried.values())
    same = len(said) == 1 and len(untried) == len(trials) + len(refused)
    details = said.pop() if same else _together(untried)
    return Verdict(promise, "kept" if kept else "not tried", details)


def _together(said: Mapping[str, str]) -> str:
    """What is said of each family; the same, or the same line of code, only once."""
    first: dict[str, str] = {}
    others: dict[str, list[str]] = {}
    for family, text in said.items():
        # Linears of another family have other names and shapes; the line of the plugin is the same.
        line = re.search(r"[\w.-]+\.py:\d+", text)
        key = line[0] if line else text
        if key in first:
            others[key].append(family)
        else:
            first[key], others[key] = f"{family}: {text}", []
    return "; ".join(
        f"{text}; also on {', '.join(others[key])}" if others[key] else text
        for key, text in first.items()
    )


def _worse_than_random(trials: Sequence[MethodTrial]) -> str | None:
    """What speaks for inverted scores on the first family where something does."""
    for trial in trials:
        try:
            WORSE.check(trial)
        except BrokenPromiseError as error:
            return f"{trial.family}: {error}"
    return None
