"""The sample strips of a card as geometry."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prunebench.record.speed import LatencySamples
from prunebench_report.figures.sparklines import WIDTH, sample_strip

times = st.lists(st.lists(st.floats(1e-6, 10), max_size=40), max_size=8)


@given(times, st.none() | times)
def test_strips_hold_their_samples_whatever_they_are(mine, dense):
    drawn = sample_strip(LatencySamples(ttft_s=[], inter_token_s=mine, dense_inter_token_s=dense))
    count = sum(map(len, mine))
    assert (drawn is None) == (count == 0)
    if drawn:
        assert drawn["rows"][0]["count"] == count
        for row in drawn["rows"]:
            assert 0 <= row["low"] <= row["middle"] <= row["high"] <= WIDTH


def test_the_slowest_samples_are_counted_not_drawn():
    raw = LatencySamples(
        ttft_s=[], inter_token_s=[[0.01 + index * 1e-5 for index in range(300)] + [5.0]]
    )
    row = sample_strip(raw)["rows"][0]
    assert row["beyond"] == 1
    assert row["high"] > WIDTH / 2
