"""Sets of indices as text: they come back, stay small, and damage is named."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunebench.record.kept_units import index_text, indices_of


@pytest.mark.parametrize(
    ("indices", "total", "text"),
    [
        ([], 4, "none of 4"),
        ([0, 1, 2, 3], 4, "0-3 of 4"),
        ([0, 1, 2, 3, 5, 7, 8], 12, "0-3,5,7-8 of 12"),
        (list(range(0, 64, 2)), 64, "bits of 64: VVVVVVVVVVU="),
    ],
)
def test_the_text_can_be_read(indices: list[int], total: int, text: str) -> None:
    assert index_text(indices, total) == text
    assert indices_of(text) == (indices, total)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_every_set_comes_back(drawn: tuple[int, set[int]]) -> None:
    total, indices = drawn
    assert indices_of(index_text(sorted(indices), total)) == (sorted(indices), total)


def test_scattered_channels_take_a_character_for_six() -> None:
    """The MLP of Llama-2-7B, pruned by a fifth."""
    kept = sorted(random.Random(0).sample(range(11008), 8806))
    assert len(index_text(kept, 11008)) < 11008 / 6 + 30


def test_ranges_can_be_written_without_the_total() -> None:
    assert indices_of("0-3,7") == ([0, 1, 2, 3, 7], None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no set of indices"),
        ("all", "no set of indices"),
        ("3,1", "must ascend"),
        ("1,1", "must ascend"),
        ("5-3", "must ascend"),
        ("0-4 of 4", "there is no index 4 of 4"),
        ("0-99999999999", "no model has so many"),
        ("bits of 64: VVVVVVVVVVU", "base64"),
        ("bits of 65: VVVVVVVVVVU=", "64 bits do not fit a set of 65"),
        ("bits of 63: VVVVVVVVVaU=", "no index 63 of 63"),
    ],
)
def test_a_damaged_text_is_named(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        indices_of(text)
