"""Ranking by losses of which some are only bounded, for made-up losses and bounds."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunebench import PrunebenchError
from prunebench_plugins import removal_ranking
from prunebench_plugins.removal_ranking import lowest
from prunebench_plugins.removal_search import WHOLE, Unit

BATCHES = 2


@dataclass
class Made:
    """A search and its partial forward: unit i has two batches with these losses and bounds."""

    losses: list[tuple[float, float]]
    gaps: list[float]
    bounds_pay: bool = True
    slack: float = 0.0
    exact: list[int] = field(default_factory=list)
    """Units whose loss was computed, once for each batch."""

    @property
    def forward(self) -> Made:
        return self

    @property
    def left(self) -> list[Unit]:
        return [Unit(WHOLE, index) for index in range(len(self.losses))]

    def variants_upwards(self):
        for unit in self.left:
            yield unit, [torch.tensor([unit.layer])] * BATCHES

    def told_apart(self, results):
        return results

    def nll(self, batch: int, end: torch.Tensor) -> float:
        self.exact.append(int(end))
        return self.losses[int(end)][batch]

    def lower_bound(self, batch: int, end: torch.Tensor):
        if not self.bounds_pay:
            return None
        return lambda other: self.losses[int(other)][batch] - self.gaps[int(other)]


numbers = st.integers(0, 12).map(float)


@given(st.data(), st.lists(st.tuples(numbers, numbers), min_size=1, max_size=12), st.booleans())
def test_the_lowest_are_exact_and_all_others_are_at_least_bounded(data, losses, few) -> None:
    size = len(losses)
    gaps = data.draw(st.lists(numbers, min_size=size, max_size=size))
    among = data.draw(st.sets(st.integers(0, size - 1), min_size=1))
    count = data.draw(st.integers(0, len(among)))
    made = Made(losses, gaps)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(removal_ranking, "KEPT_BYTES", 0 if few else 1 << 20)
        found = lowest(made, count, [Unit(WHOLE, layer) for layer in among])
    assert [result.unit for result in found.results] == made.left
    totals = [sum(pair) for pair in losses]
    scores = [result.loss for result in found.results]
    bounded = {unit.layer for unit in found.bounded}
    for layer, (score, total) in enumerate(zip(scores, totals, strict=True)):
        assert score <= total if layer in bounded else score == total
    # The choice by these scores is the choice by exact losses, and all of it is exact.
    chosen = sorted(among, key=scores.__getitem__)[:count]
    assert chosen == sorted(among, key=totals.__getitem__)[:count]
    assert not bounded & set(chosen)


def test_only_what_may_be_chosen_is_computed() -> None:
    losses = [(9.0, 9.0), (5.0, 5.0), (1.0, 1.0), (2.0, 2.0), (7.0, 7.0), (3.0, 0.0), (0.5, 0.5)]
    made = Made(losses, [0.25] * 7)
    found = lowest(made, 2, [Unit(WHOLE, layer) for layer in range(1, 6)])
    # Unit 1, where the bounds are taken, and the two lowest. Unit 0 waits for the bounds, and unit 6
    # is not asked for.
    assert made.exact == [1, 1, 2, 2, 5, 5]
    assert {unit.layer for unit in found.bounded} == {0, 3, 4, 6}
    assert found.results[3].loss == 3.5


def test_losses_of_units_that_are_not_asked_for_are_no_limit() -> None:
    """The fifth unit that waits for bounds is where they are taken, whatever it is."""
    made = Made([(0.0, 0.0)] * 5 + [(2.0, 2.0), (3.0, 3.0), (1.0, 1.0)], [0.5] * 8)
    found = lowest(made, 1, [Unit(WHOLE, layer) for layer in (5, 6, 7)])
    assert made.exact == [4, 4, 7, 7]
    assert Unit(WHOLE, 7) not in found.bounded


def test_a_loss_that_is_too_high_after_a_part_of_the_windows_stays_a_bound() -> None:
    losses = [(2.0, 2.0), (1.0, 1.0), (9.0, 1.0), (9.0, 9.0), (9.0, 9.0), (9.0, 9.0)]
    made = Made(losses, [0.0, 0.0, 3.5, 0.0, 0.0, 0.0])
    found = lowest(made, 2, made.left)
    assert made.exact == [0, 0, 1, 1, 2]
    assert found.results[2].loss == 9.0 - 2.5
    assert Unit(WHOLE, 2) in found.bounded


def test_if_few_losses_would_be_saved_all_are_computed() -> None:
    for pay, count in ((True, 3), (False, 0)):
        made = Made([(float(layer), 0.0) for layer in range(6)], [0.5] * 6, bounds_pay=pay)
        assert lowest(made, count, made.left).bounded == set()
        assert made.exact == sorted(list(range(6)) * BATCHES)


def test_a_loss_that_is_no_number_names_its_layer() -> None:
    losses = [(1.0, 1.0)] * 6 + [(float("nan"), 1.0)]
    for among in (range(7), range(6)):
        made = Made(losses, [0.5] * 7)
        with pytest.raises(PrunebenchError, match="the loss without layer 6 is NaN"):
            lowest(made, 1, [Unit(WHOLE, layer) for layer in among])
