"""The contract as a class of tests: inherit from it, name your plugin, and pytest tries every promise.

from prunebench.testing import MethodContract
from my_package import Mine

class TestMine(MethodContract):
    method = Mine
    options = {"sparsity": 0.5}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from prunebench.errors import PrunebenchError
from prunebench.testing.allocations import ALLOCATION_PROMISES, AllocationTrial
from prunebench.testing.metrics import METRIC_PROMISES, MetricTrial
from prunebench.testing.promises import METHOD_PROMISES, Promise
from prunebench.testing.recoveries import RECOVERY_PROMISES, RecoveryTrial
from prunebench.testing.trial import NotApplicableError, Trial

if TYPE_CHECKING:
    from prunebench.plugin.api.allocation import Allocation
    from prunebench.plugin.api.method import Method
    from prunebench.plugin.api.metric import Metric
    from prunebench.plugin.api.recovery import Recovery

FAMILIES = ("llama", "qwen2", "opt", "gpt_neox")
"""What is tried where nothing else is said: grouped keys, sliding windows, biases with tied embeddings, parallel blocks."""


class _Contract:
    """One test a promise and family, in which a plugin may refuse a family or have nothing to keep."""

    options: ClassVar[Mapping[str, Any]] = {}
    """The options to try it with; the plugin's defaults for the others."""
    families: ClassVar[Sequence[str]] = FAMILIES
    """Of `prunebench.testing.FAMILIES`."""
    promises: ClassVar[Sequence[Promise]] = ()

    @classmethod
    def trial(cls, family: str) -> Any:
        """What the promises are tried on."""
        raise NotImplementedError

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """One test for each promise and family; the promises of a family share what they compute."""
        if "kept" in metafunc.fixturenames:
            trials = [self.trial(family) for family in self.families]
            metafunc.parametrize("trial", trials, ids=list(self.families), scope="class")
            metafunc.parametrize("kept", self.promises, ids=[kept.name for kept in self.promises])

    def test_keeps_its_promise(self, trial: Any, kept: Promise) -> None:
        """The plugin does what ``kept`` says."""
        import pytest

        try:
            kept.check(trial)
        except NotApplicableError as reason:
            pytest.skip(str(reason))
        except PrunebenchError as refusal:
            pytest.skip(f"refused on {trial.family}: {refusal}")


class MethodContract(_Contract):
    """Tests of a pruning method."""

    method: ClassVar[type[Method]]
    tolerance: ClassVar[float] = 0.02
    """Between the share asked for and the share measured."""
    promises: ClassVar[Sequence[Promise]] = METHOD_PROMISES

    @classmethod
    def trial(cls, family: str) -> Trial:
        return Trial(cls.method, family, cls.options, cls.tolerance)


class AllocationContract(_Contract):
    """Tests of an allocation."""

    allocation: ClassVar[type[Allocation]]
    tolerance: ClassVar[float] = 0.02
    """Between the share asked for and the mean of those given."""
    promises: ClassVar[Sequence[Promise]] = ALLOCATION_PROMISES

    @classmethod
    def trial(cls, family: str) -> AllocationTrial:
        return AllocationTrial(cls.allocation, family, cls.options, cls.tolerance)


class RecoveryContract(_Contract):
    """Tests of a recovery."""

    recovery: ClassVar[type[Recovery]]
    promises: ClassVar[Sequence[Promise]] = RECOVERY_PROMISES

    @classmethod
    def trial(cls, family: str) -> RecoveryTrial:
        return RecoveryTrial(cls.recovery, family, cls.options)


class MetricContract(_Contract):
    """Tests of a metric."""

    metric: ClassVar[type[Metric]]
    promises: ClassVar[Sequence[Promise]] = METRIC_PROMISES

    @classmethod
    def trial(cls, family: str) -> MetricTrial:
        return MetricTrial(cls.metric, family, cls.options)
