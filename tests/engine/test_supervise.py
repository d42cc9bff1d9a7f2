"""Following a cell from outside: its phase, and how long it waited for others."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from prunebench.cell.events import Event, EventReader, EventWriter
from prunebench.engine.supervise import Follower
from prunebench.isolation.timing_lock import WAITING


def test_a_follower_passes_events_on_and_counts_the_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    seen: list[Event] = []
    ticks: list[str] = []
    follow = Follower(
        EventReader(tmp_path / "events"),
        seen.append,
        tmp_path / "log",
        lambda: ticks.append("tick"),
    )
    with (tmp_path / "events").open("w") as file:
        events = EventWriter(file)
        events.phase("load")
        follow()
        now = 110.0
        events.phase(WAITING)
        follow()
        now = 113.0
        assert follow.waited_s() == 3.0
        events.phase("latency")
        follow()
        now = 200.0
    assert follow.waited_s() == 3.0
    assert follow.phase == "latency"
    assert seen == [Event("load"), Event(WAITING), Event("latency")]
    assert ticks == ["tick"] * 3
