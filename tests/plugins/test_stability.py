"""Stability is the paper's formula: weights from the dense model, agreement in right and wrong."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunebench import MetricContext, PrunebenchError
from prunebench.measure.quality.choice_scores import ChoiceScores
from prunebench.plugin.host import load_plugins
from prunebench.testing import MetricContract
from prunebench_plugins.stability import stability


class TestStability(MetricContract):
    metric, families = load_plugins()["metric"]["stability"].value, ("llama",)


QUESTIONS = st.lists(
    st.tuples(st.floats(0, 8), st.booleans(), st.booleans()), min_size=1, max_size=12
)


def test_the_formula_on_numbers_done_by_hand() -> None:
    """exp(0), exp(ln 2), exp(ln 3) are 1, 2, 3: of 6, those of questions 0 and 2 agree."""
    spreads = [0.0, math.log(2), math.log(3)]
    found = stability(spreads, [True, True, False], [True, False, False])
    assert found == pytest.approx((1 + 3) / 6)
    # The released script adds up the weights of the first two questions, because two agree.
    assert found != pytest.approx((1 + 2) / 6)


@given(QUESTIONS)
def test_it_is_a_share_and_one_for_the_dense_model(questions) -> None:
    spreads, dense, pruned = map(list, zip(*questions, strict=True))
    value = stability(spreads, dense, pruned)
    assert 0 <= value <= 1 + 1e-12
    assert stability(spreads, dense, dense) == pytest.approx(1)
    assert stability(spreads, pruned, dense) == pytest.approx(value)
    opposite = [not each for each in dense]
    assert stability(spreads, dense, opposite) == pytest.approx(0)
    assert stability([each + 700 for each in spreads], dense, pruned) == pytest.approx(value)
    assert stability([1.0] * len(dense), dense, pruned) == pytest.approx(
        sum(a == b for a, b in zip(dense, pruned, strict=True)) / len(dense)
    )


def task(name: str, correct: str | None, **fields: object) -> SimpleNamespace:
    return SimpleNamespace(
        **{"task": name, "correct": correct, "group": None, "aggregate": False, "asked": True}
        | fields
    )


def measure(tasks, scores) -> dict[str, float]:
    kind = load_plugins()["metric"]["stability"].value
    context = MetricContext(
        None, 0, load_dense=lambda: "dense", tasks=tasks, score_choices=lambda model: scores[model]
    )
    return kind(kind.Options()).measure("pruned", None, context)


SURE, UNSURE = ChoiceScores((0.0, 2 * math.log(3)), True), ChoiceScores((1.0, 1.0), False)
"""Standard deviations ln 3 and 0: weights of 3 and 1."""


def test_a_group_counts_as_the_mean_of_its_tasks() -> None:
    tasks = [
        task("mmlu", None, aggregate=True),
        task("mmlu_stem", None, aggregate=True, asked=False, group="mmlu"),
        task("physics", "10", asked=False, group="mmlu_stem"),
        task("law", "01", asked=False, group="mmlu"),
        task("arc", "11"),
        task("lambada", "1"),
    ]
    scores = {name: [SURE, UNSURE] for name in ("physics", "law", "arc")}
    found = measure(tasks, {"dense": scores})
    assert found == pytest.approx(
        {"stability-mmlu": (1 + 0) / 2, "stability-arc": 3 / 4, "stability": (0.5 + 0.75) / 2}
    )


def test_suites_without_such_tasks_are_told() -> None:
    with pytest.raises(PrunebenchError, match="none of the suite's tasks is a multiple choice"):
        measure([task("lambada", "1")], {"dense": {}})
    kind = load_plugins()["metric"]["stability"].value
    with pytest.raises(PrunebenchError, match="the suite has no tasks") as caught:
        kind(kind.Options()).measure("p", None, MetricContext(None, 0, load_dense=lambda: "d"))
    assert "tasks: [arc_easy" in caught.value.hint
    with pytest.raises(PrunebenchError, match="answered 2 questions and the pruned one 3"):
        measure([task("arc", "110")], {"dense": {"arc": [SURE, UNSURE]}})
