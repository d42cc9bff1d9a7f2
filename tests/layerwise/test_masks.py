"""Masks against brute force: exact counts, lowest scores, ties by index."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunebench.errors import PrunebenchError
from prunebench.layerwise.masks import kth_lowest, lowest, lowest_overall


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


@settings(max_examples=60)
@given(
    st.integers(2, 512),
    st.floats(0, 1),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([4, 1 << 24]),
    st.integers(0, 1000),
)
def test_groups_of_any_size_lose_the_first_of_a_stable_sort(
    of: int, part: float, rows: int, groups: int, values: int, seed: int
) -> None:
    """Up to 512 weights a group, with few and with many distinct scores."""
    keep = min(of - 1, 1 + int(part * of))
    generator = torch.Generator().manual_seed(seed)
    score = torch.randint(values, (rows, groups * of), generator=generator).float()
    order = score.view(-1, of).sort(dim=1, stable=True).indices[:, : of - keep]
    expected = torch.zeros(rows * groups, of, dtype=torch.bool).scatter_(1, order, value=True)
    assert torch.equal(lowest(score, f"{keep}:{of}", group="row"), expected.view_as(score))


@pytest.mark.parametrize("of", [15, 16, 127, 128, 129, 255, 256, 257])
def test_the_sizes_at_which_counting_changes_are_right(of: int) -> None:
    score = torch.arange(2.0 * of).flip(0).view(1, -1)  # the lowest are at the end of each group
    mask = lowest(score, f"1:{of}", group="row").view(2, of)
    assert mask.sum(dim=1).tolist() == [of - 1, of - 1]
    assert not mask[:, 0].any()
    assert torch.equal(
        lowest(score.flip(1), f"{of - 1}:{of}", group="row").nonzero()[:, 1], torch.tensor([0, of])
    )


def test_groups_that_do_not_divide_the_columns_are_refused() -> None:
    with pytest.raises(PrunebenchError, match="groups of 4 do not divide 6"):
        lowest(torch.ones(2, 6), "2:4", group="row")


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32]
)
def test_the_kth_lowest_is_that_of_a_sort_in_every_type(dtype: torch.dtype) -> None:
    score = (10 * torch.randn(4, 9, generator=torch.Generator().manual_seed(0))).to(dtype)
    ordered = score.sort(dim=1).values
    for k in range(1, 10):
        found = kth_lowest(score, k)
        assert found.dtype == dtype
        assert torch.equal(found, ordered[:, k - 1 : k])


def test_a_matrix_may_lose_everything_if_no_density_is_asked_for() -> None:
    weights = {"small": torch.arange(100.0)[None], "large": 1000 + torch.arange(100.0)[None]}
    found = {path: int(mask.sum()) for path, mask in lowest_overall(weights, torch.clone, 0.5)}
    assert found == {"small": 100, "large": 0}
    kept = lowest_overall(weights, torch.clone, 0.5, min_density=0.01)
    assert {path: int(mask.sum()) for path, mask in kept} == {"small": 99, "large": 1}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("group", ["row", "matrix"])
def test_scores_without_an_order_are_refused_for_a_share(bad: float, group: str) -> None:
    score = torch.arange(24.0).view(2, 12)
    assert int(lowest(score, 0.5, group=group).sum()) == 12
    score[1, 3] = bad
    with pytest.raises(PrunebenchError, match="1 of 24 scores are not finite"):
        lowest(score, 0.5, group=group)
    # N:M orders the other groups all the same.
    assert lowest(score, "2:4", group=group).shape == (2, 12)


def test_a_negative_zero_is_as_low_as_a_zero_of_an_earlier_matrix() -> None:
    weights = {"first": torch.tensor([[0.0, 1.0]]), "second": torch.tensor([[-0.0, 1.0]])}
    found = {path: mask[0].tolist() for path, mask in lowest_overall(weights, torch.clone, 0.25)}
    assert found == {"first": [True, False], "second": [False, False]}


@pytest.mark.parametrize("zeros", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_four_scores_without_ties_are_chosen_as_by_a_sort(zeros: int, dtype: torch.dtype) -> None:
    orders = torch.tensor(list(itertools.permutations(range(4))), dtype=dtype) - 1
    mask = lowest(orders.view(4, -1), f"{4 - zeros}:4", group="row")
    assert torch.equal(mask.view(-1, 4), orders + 1 < zeros)


def test_equal_scores_and_nan_do_not_make_up_for_each_other() -> None:
    # Compared with a threshold, the first group would lose none, and the second all four.
    score = torch.tensor([[float("nan"), 1.0, 2.0, 3.0, 5.0, 5.0, 5.0, 5.0]])
    mask = lowest(score, "2:4", group="row")
    assert mask.view(2, 4).sum(dim=1).tolist() == [2, 2]
    assert mask[0, 4:].tolist() == [True, True, False, False]
