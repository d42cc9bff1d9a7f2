"""The contract without pytest: try every promise on every family, and give one verdict for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from prunebench.errors import PrunebenchError, first_line
from prunebench.testing.allocations import ALLOCATION_PROMISES, AllocationTrial
from prunebench.testing.methods import METHOD_PROMISES
from prunebench.testing.metrics import METRIC_PROMISES, MetricTrial
from prunebench.testing.promises import BrokenPromiseError, NotApplicableError, Promise
from prunebench.testing.recoveries import RECOVERY_PROMISES, RecoveryTrial
from prunebench.testing.trial import MethodTrial

if TYPE_CHECKING:
    from prunebench.plugin.registry import Kind, PluginEntry

CONTRACTS: Mapping[Kind, tuple[Any, Sequence[Promise]]] = {
    "method": (MethodTrial, METHOD_PROMISES),
    "allocation": (AllocationTrial, ALLOCATION_PROMISES),
    "recovery": (RecoveryTrial, RECOVERY_PROMISES),
    "metric": (MetricTrial, METRIC_PROMISES),
}
"""The kinds that have a contract, with what their promises are tried on."""


@dataclass(frozen=True)
class Verdict:
    """Whether a promise is kept; ``details`` say where it was broken or why it was not tried."""

    promise: Promise
    status: Literal["kept", "broken", "not tried"]
    details: str


def check(
    entry: PluginEntry, options: Mapping[str, Any], families: Sequence[str]
) -> Iterator[Verdict]:
    """Try every promise of a registered plugin.

    Raises PrunebenchError if plugins of its kind have no contract.
    """
    if entry.kind not in CONTRACTS:
        raise PrunebenchError(
            f"'{entry.name}' is a {entry.kind}; only these have a contract: {', '.join(CONTRACTS)}",
            hint="try it in a suite: prunebench run SUITE",
        )
    trial_of, promises = CONTRACTS[entry.kind]
    # One trial for all promises: it prunes once and keeps the result.
    trials = [trial_of(entry.value, family, options) for family in families]
    for promise in promises:
        yield _verdict(promise, trials)


def _verdict(promise: Promise, trials: Sequence[Any]) -> Verdict:
    broken: list[str] = []
    untried: dict[str, None] = {}  # a set that keeps its order
    kept = 0
    for trial in trials:
        try:
            promise.check(trial)
            kept += 1
        except BrokenPromiseError as error:
            broken.append(f"{trial.family}: {error}")
        except NotApplicableError as reason:
            untried[str(reason)] = None
        except PrunebenchError as refusal:
            untried[f"{trial.family} is refused: {refusal}"] = None
        except Exception as error:  # the plugin's own code
            broken.append(f"{trial.family}: {type(error).__name__}: {first_line(error)}")
    if broken:
        return Verdict(promise, "broken", "; ".join(broken))
    return Verdict(promise, "kept" if kept else "not tried", "; ".join(untried))
