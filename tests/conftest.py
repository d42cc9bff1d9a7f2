"""Settings for all tests."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

from hub_server import HubServer
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
# For `tests/mutation/run.py`, which asks whether a test fails, not for the smallest example.
settings.register_profile(
    "unshrunk",
    settings.get_profile("repeatable"),
    phases=[Phase.explicit, Phase.generate],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))
# pytest-xdist sets it to 80; without it, output that is no terminal has no width.
os.environ.pop("COLUMNS", None)


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count this process's timed rounds as undisturbed, whatever else the machine does.

    A test that is about disturbances overrides this fixture in its module.
    """
    monkeypatch.setattr(CpuWatch, "disturbed", lambda *_: None)
    monkeypatch.setattr(disturbance, "TOLERANCE", float("inf"))


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of huggingface_hub, and nobody logged in."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return tmp_path / "hub"


@pytest.fixture
def hub(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub on this machine that is asked instead of the public one; nobody pauses before it."""
    monkeypatch.setattr("prunebench.model.hub_access._PAUSE_S", 0)
    monkeypatch.setattr("prunebench.model.hub_files._PAUSE_S", 0)
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture
def closed_port(hub_cache: Path) -> int:
    """A local port without a server, reached without a proxy."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
