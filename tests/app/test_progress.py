"""What a run says while it goes on, in a log: on a clock of the test."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from prunebench.app.progress import ProgressLines
from prunebench.app.time_left import in_words
from prunebench.cell.events import Event
from prunebench.experiment.plugins import MethodRef
from prunebench.record.record import Cost, PhaseTime
from small_records import cell as a_cell
from small_records import record as a_record


class Log(ProgressLines):
    """Progress in a log, with a clock that the test sets."""

    def __init__(self, cells):
        self.now = 0.0
        self.file = io.StringIO()
        console = Console(file=self.file, soft_wrap=True, highlight=False)
        super().__init__(console, list(cells), clock=lambda: self.now)

    @property
    def lines(self):
        return self.file.getvalue().splitlines()

    def end(self, cell, **phases):
        """The cell ends ok, having spent these seconds in these phases."""
        cost = Cost(
            prune_s=0,
            calibration_tokens=0,
            calibration_sha256=None,
            peak_rss_bytes=None,
            total_s=sum(phases.values()),
            phases=[PhaseTime(phase=name, seconds=seconds) for name, seconds in phases.items()],
        )
        self.now += sum(phases.values())
        self.finished(a_record(cell).model_copy(update={"cost": cost}))


def cells(*methods):
    return [
        a_cell(seed).model_copy(
            update={"method": MethodRef(name=name, distribution="d", version="1")}
        )
        for seed, name in enumerate(methods)
    ]


def test_a_long_cell_tells_its_phase_and_per_cent():
    log = Log(cells("wanda"))
    (cell,) = log.waiting
    log.started(cell)
    log.moved(cell, Event("prune", 3, 30))
    log.now = 540
    log.report()
    assert log.lines[-1] == "[1/1] m wanda: prune 10%, after 9 min"


def test_a_training_tells_its_loss():
    log = Log(cells("wanda"))
    (cell,) = log.waiting
    log.started(cell)
    log.moved(cell, Event("recover", 3, 30, "loss 3.21, 812 tokens/s"))
    log.now = 540
    log.report()
    assert log.lines[-1] == ("[1/1] m wanda: recover (loss 3.21, 812 tokens/s) 10%, after 9 min")


def test_a_phase_that_does_not_count_has_no_per_cent():
    log = Log(cells("wanda"))
    (cell,) = log.waiting
    log.started(cell)
    log.moved(cell, Event("load"))
    log.now = 70
    log.report()
    assert log.lines[-1] == "[1/1] m wanda: load, after 1 min"


def test_nothing_is_said_between_cells():
    log = Log(cells("wanda"))
    log.report()
    assert log.lines == []


def test_the_time_left_comes_from_the_phases_of_finished_cells():
    first, second, third = cells("wanda", "wanda", "wanda")
    log = Log([first, second, third])
    log.started(first)
    log.end(first, load=60, prune=600, latency=300)
    log.started(second)
    log.moved(second, Event("load"))
    log.moved(second, Event("prune", 1, 2))
    log.now += 360
    log.report()
    # half of the pruning, the timing, and a whole cell: 300 + 300 + 960 s
    assert log.lines[-1] == (
        "[2/3] m wanda seed=1: prune 50%, after 6 min; about 26 min left for the whole run"
    )


def test_a_method_that_has_finished_is_expected_to_take_as_long_again():
    dense, slow, again = cells("dense", "blockpruner", "blockpruner")
    log = Log([dense, slow, again])
    log.started(dense)
    log.end(dense, load=10, latency=20)
    log.started(slow)
    log.end(slow, load=10, prune=3000, latency=20)
    log.started(again)
    log.report()
    assert log.lines[-1].endswith("about 50 min left for the whole run")


def test_a_failed_cell_tells_nothing_of_the_others():
    first, second = cells("wanda", "wanda")
    log = Log([first, second])
    log.started(first)
    log.finished(a_record(first, "failed"))
    log.started(second)
    log.report()
    assert "left" not in log.lines[-1]


def test_cells_that_run_at_once_share_a_line():
    first, second, third = cells("wanda", "magnitude", "random")
    log = Log([first, second, third])
    for cell in (first, second):
        log.started(cell)
        log.moved(cell, Event("prune"))
    log.now = 120
    log.report()
    assert log.lines[-1] == (
        "[1/3] m wanda: prune, after 2 min; [2/3] m magnitude seed=1: prune, after 2 min"
    )


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (4, "4 s"), (38, "40 s"), (61, "1 min"), (3540, "59 min"), (7380, "2 h 3 min")],
)
def test_estimates_are_as_exact_as_they_deserve(seconds, words):
    assert in_words(seconds) == words
