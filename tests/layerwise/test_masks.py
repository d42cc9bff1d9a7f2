"""Masks against brute force: exact counts, lowest scores, ties by index."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunebench.errors import PrunebenchError
from prunebench.layerwise.masks import lowest


@st.composite
def scores(draw: st.DrawFn, multiple: int = 1) -> torch.Tensor:
    """Few distinct values, so that ties are common. [rows, columns]"""
    rows = draw(st.integers(1, 5))
    columns = multiple * draw(st.integers(1, 6))
    values = draw(st.lists(st.integers(0, 3), min_size=rows * columns, max_size=rows * columns))
    return torch.tensor(values, dtype=torch.float32).view(rows, columns)


def brute(values: list[float], count: int) -> list[bool]:
    order = sorted(range(len(values)), key=lambda i: (values[i], i))
    return [i in set(order[:count]) for i in range(len(values))]


@given(scores(), st.floats(0, 0.999))
def test_rows_lose_exactly_their_lowest(score: torch.Tensor, share: float) -> None:
    mask = lowest(score, share, group="row")
    assert mask.tolist() == [brute(row, int(len(row) * share)) for row in score.tolist()]


@given(scores(), st.floats(0, 0.999))
def test_matrix_loses_exactly_its_lowest(score: torch.Tensor, share: float) -> None:
    mask = lowest(score, share, group="matrix")
    flat = score.flatten().tolist()
    assert mask.flatten().tolist() == brute(flat, int(len(flat) * share))


@given(
    st.data(),
    st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 4), (4, 8), (5, 8)]),
    st.sampled_from(["row", "matrix"]),
)
def test_groups_lose_exactly_their_lowest(
    data: st.DataObject, pattern: tuple[int, int], group: str
) -> None:
    keep, of = pattern
    score = data.draw(scores(multiple=of))
    mask = lowest(score, f"{keep}:{of}", group=group)
    expected = [brute(g, of - keep) for g in score.reshape(-1, of).tolist()]
    assert mask.reshape(-1, of).tolist() == expected


def test_groups_that_do_not_divide_the_columns_are_refused() -> None:
    with pytest.raises(PrunebenchError, match="groups of 4 do not divide 6"):
        lowest(torch.ones(2, 6), "2:4", group="row")
