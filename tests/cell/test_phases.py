"""Each phase has its time and the CPU time of the process."""

from __future__ import annotations

import time

from prunebench.cell.phases import Phases


def test_a_phase_has_the_cpu_time_that_the_process_took_in_it() -> None:
    phases = Phases()
    before = time.process_time()
    for name in ("load", "prune"):
        with phases.phase(name):
            sum(range(100_000))
    spent = time.process_time() - before
    assert [one.phase for one in phases.times] == ["load", "prune"]
    found = [one.cpu_s for one in phases.times if one.cpu_s is not None]
    assert len(found) == 2
    assert min(found) > 0
    assert sum(found) <= spent
