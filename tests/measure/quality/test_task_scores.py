"""The metric that stands for a task, the share of dense quality, and when a difference is one."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunebench.measure.quality.task_scores import headline, task_recovery, z_score


@pytest.mark.parametrize(
    ("task", "metrics", "wanted"),
    [
        ("hellaswag", ["acc", "acc_norm"], "acc_norm"),
        ("arc_challenge", ["acc", "acc_norm"], "acc_norm"),
        ("openbookqa", ["acc", "acc_norm"], "acc_norm"),
        ("openbookqa", ["acc"], "acc"),
        ("arc_easy", ["acc", "acc_norm"], "acc"),
        ("piqa", ["acc", "acc_norm"], "acc"),
        ("lambada_openai", ["perplexity", "acc"], "acc"),
        ("gsm8k", ["bleu", "exact_match"], "exact_match"),
        ("mine", ["loss", "prompt_accuracy"], "prompt_accuracy"),
        ("wikitext", ["word_perplexity", "bits_per_byte"], "word_perplexity"),
        ("empty", [], None),
    ],
)
def test_headline(task, metrics, wanted):
    assert headline(task, metrics) == wanted


def test_recovery_is_score_over_dense_or_the_other_way_round():
    assert task_recovery(0.3, 0.4) == pytest.approx(0.75)
    assert task_recovery(20.0, 10.0, higher_is_better=False) == pytest.approx(0.5)
    assert task_recovery(0.0, 0.4) == 0
    for value, dense in [(None, 0.4), (0.3, None), (0.3, 0.0), (math.nan, 0.4), (0.3, -1.0)]:
        assert task_recovery(value, dense) is None


shares = st.floats(0, 1)


@given(shares, st.floats(0.001, 0.5), shares, st.floats(0.001, 0.5))
def test_z_is_antisymmetric_and_no_larger_than_with_either_error_alone(
    value, error, dense, dense_error
):
    z = z_score(value, error, dense, dense_error)
    assert z == -z_score(dense, dense_error, value, error)
    assert abs(z) <= abs(value - dense) / max(error, dense_error) + 1e-12


def test_z_of_a_known_case():
    assert z_score(0.5, 0.03, 0.6, 0.04) == pytest.approx(-2.0)
    assert z_score(0.5, 0.0, 0.6, 0.0) is None
    assert z_score(0.5, None, 0.6, 0.1) is None
