from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunebench.measure.devices.gpu_log import pcie_traffic, read_log, sharing

SPANS = [("start", 0.0, 10.0), ("load", 10.0, 20.0), ("prune", 20.0, 30.0), ("latency", 30.0, 40.0)]
FIRST = "first 1.0 500 0.20"


def shared(*lines):
    return sharing(read_log([FIRST, *lines]), SPANS)


@pytest.mark.parametrize(
    ("lines", "foreign", "pids", "phases"),
    [
        (["pids 1.0 0 2", "pids 12.0 1 2"], False, [], []),
        (["pids 12.0 1 2", "pids 22.0 1 2 77:1000", "pids 25.0 1 2"], True, [77], ["prune"]),
        (
            ["pids 1.0 0 2 77:-", "pids 12.0 1 2 77:-"],
            True,
            [77],
            ["start", "load", "prune", "latency"],
        ),
        (
            ["pids 12.0 1 2 77:5", "pids 15.0 1 2", "pids 35.0 1 2 88:1"],
            True,
            [77, 88],
            ["load", "latency"],
        ),
        (
            ["pids 1.0 0 1", "pids 12.0 0 1 900:5"],
            None,
            [],
            [],
        ),  # ours by its host pid, or another's
        (["pids 12.0 0 1 900:5 901:5", "pids 21.0 0 1 900:5"], True, [], ["load", "prune"]),
        (["pids 12.0 0 2 900:5 901:5"], None, [], []),  # both may be ours
        (["pids 1.0 0 1"], None, [], []),
        ([], None, [], []),
    ],
)
def test_who_was_on_the_gpu_and_when(lines, foreign, pids, phases):
    found = shared(*lines)
    assert (found.foreign, found.pids, found.phases) == (foreign, pids, phases)
    assert ("cannot tell" in found.note) == (foreign is None)
    assert (found.memory_before_bytes, found.utilisation_before) == (500, 0.2)


def test_without_a_gpu_there_is_nothing_to_say():
    log = read_log(["problem NVMLError: Driver Not Loaded", "12.0 100 - -"])
    assert sharing(log, SPANS) is None
    assert pcie_traffic(log) is None
    assert log.problems == ["NVMLError: Driver Not Loaded"]


def test_transfers_are_summed_up_and_the_link_is_the_best_seen():
    log = read_log(
        ["pcie 1.0 - 100", "link 1 16 5 -", "pcie 1.1 30 300", "link 5 16 5 -", "pcie 1.2 10 -"]
    )
    found = pcie_traffic(log)
    assert (found.samples, found.rx_mean_bytes_per_s, found.rx_peak_bytes_per_s) == (2, 200, 300)
    assert (found.tx_mean_bytes_per_s, found.tx_peak_bytes_per_s) == (20, 30)
    assert (found.generation, found.width, found.generation_limit, found.width_limit) == (
        5,
        16,
        5,
        None,
    )


WORDS = st.sampled_from(
    ["first", "pids", "pcie", "link", "problem", "-", "1", "2.5", "7:8", "x", ""]
)


@given(st.lists(st.lists(WORDS, max_size=6).map(" ".join), max_size=8))
def test_half_written_lines_break_nothing(lines):
    log = read_log(lines)
    found = sharing(log, SPANS)
    assert found is None or found.foreign in (True, False, None)
    pcie_traffic(log)
