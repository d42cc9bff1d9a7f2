"""The contract as classes of tests: inherit from one, name your plugin, and run pytest.

from prunebench.testing import MethodContract
from my_package import Mine

class TestMine(MethodContract):
    method = Mine
    options = {"sparsity": 0.5}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from prunebench.errors import PluginError, PrunebenchError
from prunebench.testing.allocations import ALLOCATION_PROMISES, AllocationTrial
from prunebench.testing.methods import METHOD_PROMISES
from prunebench.testing.metrics import METRIC_PROMISES, MetricTrial
from prunebench.testing.promises import BrokenPromiseError, NotApplicableError, Promise
from prunebench.testing.recoveries import RECOVERY_PROMISES, RecoveryTrial
from prunebench.testing.runtimes import RUNTIME_PROMISES, RuntimeTrial
from prunebench.testing.trial import MethodTrial

if TYPE_CHECKING:
    from prunebench.plugin.api.allocation import Allocation
    from prunebench.plugin.api.method import Method
    from prunebench.plugin.api.metric import Metric
    from prunebench.plugin.api.recovery import Recovery
    from prunebench.plugin.api.runtime import Runtime

DEFAULT_FAMILIES = ("llama", "qwen2", "opt", "gpt_neox")
"""Grouped keys, sliding windows, biases with tied embeddings, parallel blocks: one family each."""


class _Contract:
    """One test for each promise and family."""

    options: ClassVar[Mapping[str, Any]] = {}
    """The options to try; the others have the plugin's defaults."""
    families: ClassVar[Sequence[str]] = DEFAULT_FAMILIES
    """Some of `prunebench.testing.FAMILIES` and `prunebench.testing.MIXTURES`."""
    promises: ClassVar[Sequence[Promise]] = ()

    @classmethod
    def trial(cls, family: str) -> Any:
        """What the promises are tried on."""
        raise NotImplementedError

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Parametrize the test; the promises of one family share a trial, and so its results."""
        if "kept" in metafunc.fixturenames:
            trials = [self.trial(family) for family in self.families]
            # Class scope groups the tests by trial, so that one family's models are done together.
            metafunc.parametrize("trial", trials, ids=list(self.families), scope="class")
            metafunc.parametrize("kept", self.promises, ids=[kept.name for kept in self.promises])

    def test_keeps_its_promise(self, trial: Any, kept: Promise) -> None:
        """Try ``kept``, unless it does not concern the plugin or the plugin refuses the family."""
        import pytest  # not a dependency of prunebench: `prunebench plugins check` runs without it

        if trial.refusal is not None:
            pytest.skip(f"refused on {trial.family}: {trial.refusal}")
        if trial.failure is not None:
            if kept is not self.promises[0]:
                pytest.skip(f"it fails on {trial.family}: see '{self.promises[0].name}'")
            raise trial.failure
        try:
            kept.check(trial)
        except NotApplicableError as reason:
            pytest.skip(str(reason))
        except PluginError:
            raise
        except PrunebenchError as refusal:
            pytest.skip(f"refused on {trial.family}: {refusal}")

    def test_some_family_is_not_refused(self) -> None:
        """A plugin that refuses every family has kept no promise."""
        refusals: list[str] = []
        for family in self.families:
            refusal = self.trial(family).refusal
            if refusal is None:
                return
            refusals.append(f"{family}: {refusal}")
        raise BrokenPromiseError("every family is refused: " + "; ".join(refusals))


class MethodContract(_Contract):
    """Tests of a pruning method."""

    method: ClassVar[type[Method]]
    tolerance: ClassVar[float] = 0.02
    """Allowed difference between the requested and the measured sparsity."""
    promises: ClassVar[Sequence[Promise]] = METHOD_PROMISES

    @classmethod
    def trial(cls, family: str) -> MethodTrial:
        return MethodTrial(cls.method, family, cls.options, cls.tolerance)


class AllocationContract(_Contract):
    """Tests of an allocation."""

    allocation: ClassVar[type[Allocation]]
    tolerance: ClassVar[float] = 0.02
    """Allowed difference between the requested sparsity and the mean of the layers'."""
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


class RuntimeContract(_Contract):
    """Tests of a runtime."""

    runtime: ClassVar[type[Runtime]]
    promises: ClassVar[Sequence[Promise]] = RUNTIME_PROMISES

    @classmethod
    def trial(cls, family: str) -> RuntimeTrial:
        return RuntimeTrial(cls.runtime, family, cls.options)
