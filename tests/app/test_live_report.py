"""The report while a run goes on: seldom enough, and never a reason to stop."""

from __future__ import annotations

import logging

import pytest

from prunebench.app.live_report import SHARE, LiveReport


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize("cost", [0.2, 3.0])
def test_writing_stays_below_its_share_of_the_run(cost):
    clock, written = Clock(), []

    def write(running):
        clock.now += cost
        written.append(running)

    with LiveReport(write, clock) as live:
        for _ in range(3000):
            clock.now += 1.0
            live.cell_finished()
    assert len(written) * cost <= SHARE * clock.now
    assert len(written) * cost >= 0.5 * SHARE * clock.now
    assert all(written)


def test_an_interrupted_run_is_not_shown_as_going_on():
    clock, written = Clock(), []
    with pytest.raises(KeyboardInterrupt), LiveReport(written.append, clock) as live:
        clock.now = 1000.0
        live.cell_finished()
        raise KeyboardInterrupt
    assert written == [True, False]


def test_a_report_that_fails_stops_no_run(caplog):
    clock = Clock()

    def write(running):
        raise OSError("disk full")

    with caplog.at_level(logging.ERROR), LiveReport(write, clock) as live:
        clock.now = 1000.0
        live.cell_finished()
        live.cell_finished()
    assert len(caplog.records) == 1
