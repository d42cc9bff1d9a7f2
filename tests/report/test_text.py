from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunebench_report import text

MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "n/a"),
        (0, "0"),
        (25.049, "25.0"),
        (1234.6, "1,235"),
        (0.01234, "0.0123"),
        (-0.5, f"{MINUS}0.500"),
        (123456789, "1.23e8"),
    ],
)
def test_numbers_show_three_significant_digits(value, shown):
    assert text.number(value) == shown


@pytest.mark.parametrize(
    ("ratio", "shown"),
    [
        (0.75, f"{MINUS}25 %"),
        (1.034, "+3.4 %"),
        (1.0, "= dense"),
        (41.2, f"41{TIMES} dense"),
        (None, None),
        (0.0, None),
    ],
)
def test_a_ratio_to_dense_is_shown_as_a_difference(ratio, shown):
    assert text.delta(ratio) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "n/a"), (0.0281, "28.1 ms"), (6.5, "6.50 s"), (7200, "120 min"), (0.0, "0 ms")],
)
def test_seconds_choose_their_unit(value, shown):
    assert text.seconds(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(538e6, "538 MB"), (1.77e9, "1.77 GB"), (12, "12 B"), (None, "n/a")]
)
def test_sizes_are_decimal(value, shown):
    assert text.size(value) == shown


def test_terminal_sequences_are_removed_and_harmful_characters_replaced():
    assert text.clean("\x1b[31mred\x1b[0m\r\nnext\ttab") == "red\nnext\ttab"
    assert text.clean("a\x00b\u202ec\ud800") == "a\ufffdb\ufffdc\ufffd"


@given(st.text(st.characters(), max_size=200))
def test_clean_text_can_always_be_written_and_never_turns_the_direction(raw):
    cleaned = text.clean(raw)
    cleaned.encode("utf-8")
    assert not set(cleaned) & set("\x00\x07\x1b\x9b\u202d\u202e\u2066\u2067\u2068\u2069")
    assert text.clean(cleaned) == cleaned


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=1e-3, max_value=1e6))
def test_number_keeps_its_value_within_its_digits(value):
    assert math.isclose(float(text.number(value).replace(",", "")), value, rel_tol=6e-3)


def test_a_log_keeps_its_end_only():
    shown = text.tail("\n".join(f"line {n}" for n in range(100_000)))
    assert shown.endswith("line 99999")
    assert len(shown.splitlines()) == 20


@pytest.mark.parametrize(
    ("layers", "shown"),
    [
        ([3], "layer 3"),
        ([5, 4, 3, 9], "layers 3 to 5, 9"),
        ([1, 3], "layers 1, 3"),
        ([0, 1], "layers 0 to 1"),
    ],
)
def test_consecutive_layers_are_shown_as_ranges(layers, shown):
    assert text.layer_ranges(layers) == shown


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        (1.38, "38 % longer"),
        (1.99, "99 % longer"),
        (2.4, "2.4 times as long"),
        (389.71, "390 times as long"),
    ],
)
def test_a_large_factor_is_no_percentage(ratio, said):
    assert text.longer(ratio) == said
