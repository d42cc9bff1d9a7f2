from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from prunebench.measure.weight_counts import nm_violations


@given(st.data(), st.integers(1, 5), st.integers(1, 17), st.integers(2, 9))
def test_violations_are_those_that_brute_force_finds(data, rows, columns, of):
    keep = data.draw(st.integers(1, of - 1))
    flat = data.draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns))
    mask = [flat[row * columns : (row + 1) * columns] for row in range(rows)]
    groups = [row[start : start + of] for row in mask for start in range(0, columns, of)]
    expected = len(groups), sum(sum(group) > keep for group in groups)
    assert nm_violations(torch.tensor(mask), keep, of) == expected


def test_wide_groups_do_not_overflow_their_count():
    assert nm_violations(torch.ones(2, 600, dtype=torch.bool), 299, 300) == (4, 4)
    assert nm_violations(torch.ones(2, 600, dtype=torch.bool), 300, 300) == (4, 0)
