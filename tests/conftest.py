"""Settings for all tests."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

from prunebench.measure.devices import disturbance
from prunebench.measure.devices.disturbance import CpuWatch

# A test gives the same result every time and on any machine: hypothesis draws the same examples,
# and how long one takes does not count. `tox run -e fuzz` looks for new examples with 'random'.
settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
settings.register_profile("random", settings.get_profile("repeatable"), derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count this process's timed rounds as undisturbed, whatever else the machine does.

    A test that is about disturbances overrides this fixture in its module.
    """
    monkeypatch.setattr(CpuWatch, "disturbed", lambda *_: None)
    monkeypatch.setattr(disturbance, "TOLERANCE", float("inf"))
