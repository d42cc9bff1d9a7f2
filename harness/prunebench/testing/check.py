"""The contract without pytest: every promise tried on every family, one verdict a promise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from prunebench.errors import PrunebenchError, first_line
from prunebench.testing.allocations import ALLOCATION_PROMISES, AllocationTrial
from prunebench.testing.metrics import METRIC_PROMISES, MetricTrial
from prunebench.testing.promises import METHOD_PROMISES, Promise
from prunebench.testing.recoveries import RECOVERY_PROMISES, RecoveryTrial
from prunebench.testing.trial import BrokenPromiseError, NotApplicableError, Trial

if TYPE_CHECKING:
    from prunebench.plugin.registry import PluginEntry

KINDS: Mapping[str, tuple[Any, Sequence[Promise]]] = {
    "method": (Trial, METHOD_PROMISES),
    "allocation": (AllocationTrial, ALLOCATION_PROMISES),
    "recovery": (RecoveryTrial, RECOVERY_PROMISES),
    "metric": (MetricTrial, METRIC_PROMISES),
}


@dataclass(frozen=True)
class Verdict:
    """What became of one promise; ``details`` say where it was broken or why it was not tried."""

    promise: Promise
    status: Literal["kept", "broken", "not tried"]
    details: str


def check(
    entry: PluginEntry, options: Mapping[str, Any], families: Sequence[str]
) -> Iterator[Verdict]:
    """Try every promise of a registered plugin. Raises PrunebenchError for a kind that promises nothing."""
    if entry.kind not in KINDS:
        raise PrunebenchError(
            f"'{entry.name}' is a {entry.kind}: there are promises of {', '.join(KINDS)} only",
            hint="try it in a suite: prunebench run SUITE",
        )
    trial_of, promises = KINDS[entry.kind]
    trials = [trial_of(entry.value, family, options) for family in families]
    for promise in promises:
        yield _verdict(promise, trials)


def _verdict(promise: Promise, trials: Sequence[Any]) -> Verdict:
    broken: list[str] = []
    untried: dict[str, None] = {}
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
    details = "; ".join(untried)
    return Verdict(promise, "kept" if kept else "not tried", details)
