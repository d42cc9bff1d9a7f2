from __future__ import annotations

import pytest

from prunebench.experiment.plugins import RecoveryRef
from prunebench.record.devices import Contention, CpuLoad
from prunebench_report.sections import verdict

TIMES = "\N{MULTIPLICATION SIGN}"


@pytest.fixture
def say(build):
    """The statements about these records, by key."""

    def say(records, gate=0.95):
        return {one.key: one for one in verdict.section(build.given(records, gate=gate))}

    return say


def cells_of(statement):
    return [span.cell for span in statement.spans if span.cell]


def test_the_best_quality_among_fast_cells_is_named_and_linked(build, say):
    records = build.quickstart()
    found = say(records, gate=0.1)["quality"]
    assert found.text.startswith(
        "shortgpt ratio=0.25 keeps 15.3 % [15.0, 15.8] of dense quality (perplexity 163)"
    )
    assert found.figure == "15.3 %"
    assert cells_of(found) == [records[-1].id]


def test_a_fast_cell_below_the_gate_is_not_the_best(build, say):
    records = build.quickstart()
    found = say(records)["quality"]
    assert found.text.startswith(
        "No cell of that speed keeps 95 % of dense quality; the best, shortgpt ratio=0.25, keeps"
    )
    assert found.figure == "none"


def test_without_a_fast_cell_the_nearest_is_named(build, say):
    found = say(build.quickstart()[:-1])["quality"]
    assert f"No cell is surely 1.2{TIMES} as fast per token as dense; the nearest is" in found.text
    assert "shortgpt ratio=0.1" in found.text
    assert found.figure == "none"


def test_a_speed_up_that_is_not_sure_for_all_cells_together_is_no_claim(build, say):
    """Rounds scatter by 1 %: 1.205 is above 1.2 on average, not surely."""
    records = build.quickstart()
    near = build.record(build.cell("shortgpt", ratio=0.2), 23.0, 1.205)
    found = say([*records[:-1], near], gate=0.5)["quality"]
    assert found.figure == "none"
    assert "the nearest is shortgpt ratio=0.2" in found.text


def test_with_too_few_rounds_for_so_many_cells_nothing_is_claimed(build, say):
    """Eight rounds bound the best of 12 cells at 95 %, not the best of 13."""
    dense = build.quickstart()[0]

    def fast(count):
        ratios = [round(0.1 + number / 100, 2) for number in range(count)]
        return [build.record(build.cell("shortgpt", ratio=one), 25.0, 1.5) for one in ratios]

    assert say([dense, *fast(12)], gate=0.5)["quality"].figure == "100.2 %"
    found = say([dense, *fast(13)], gate=0.5)
    assert found["quality"].figure == found["speed"].figure == "unsure"
    assert found["quality"].text == (
        f"The fastest is shortgpt ratio=0.1, at 1.50{TIMES} [1.48, 1.52] dense speed per token. "
        "Its 8 rounds are too few to be sure of the best of all cells: that takes 9 undisturbed "
        "ones; raise min_rounds."
    )
    assert f"of dense quality at 1.50{TIMES} [1.48, 1.52] dense speed" in found["speed"].text
    assert "that takes 9 undisturbed ones" in found["speed"].text


def test_a_speed_that_was_not_measurable_is_said_with_the_reason_and_without_a_number(build, say):
    records = build.quickstart()[:1]
    for sparsity in (0.3, 0.5):
        cell = build.record(build.cell("shortgpt", ratio=sparsity), 26.0, 1.5)
        (timed,) = cell.speed.latency
        for name in ("ttft_s", "inter_token_s", "tokens_per_s"):
            setattr(timed, name, None)
        timed.ttft_speedup = timed.inter_token_speedup = None
        timed.not_measurable = "1 of 24 rounds were undisturbed and 6 are needed"
        records.append(cell)
    found = say(records, gate=0.5)
    for key in ("quality", "speed"):
        assert found[key].text == (
            "Speed was not measurable here: 1 of 24 rounds were undisturbed and 6 are needed."
        )
        assert found[key].figure == "n/a"


def test_a_disturbed_round_is_no_evidence(build, say):
    """The two slow rounds of dense would make 3 times the speed of it."""
    cell = build.record(build.cell("shortgpt", ratio=0.2), 25.0, 1.0)
    (raw,) = cell.samples.latency
    raw.dense_inter_token_s[:6] = [[1.0] * 31] * 6
    raw.disturbed = ["its threads waited for a core (40 % of the time)"] * 6 + [None, None]
    found = say([build.quickstart()[0], cell], gate=0.5)
    assert found["quality"].figure == "none"


def test_a_cell_that_passes_the_gate_without_speed_is_not_praised(build, say):
    found = say(build.quickstart())["speed"]
    assert (
        "wanda sparsity=0.1 keeps 96.7 % [96.5, 96.9] of dense quality but is not measurably faster"
        in found.text
    )


def test_the_fastest_cell_above_the_gate_wins(build, say):
    found = say(build.quickstart(), gate=0.55)["speed"]
    assert found.figure == f"1.11{TIMES}"
    assert found.text.startswith("shortgpt ratio=0.1 generates tokens at")


def test_if_no_cell_passes_the_gate_the_best_is_named(build, say):
    found = say(build.quickstart(), gate=0.99)["speed"]
    assert (
        found.text
        == "No pruned cell keeps 99 % of dense quality; the best is wanda sparsity=0.1 with 96.7 % "
        "[96.5, 96.9]."
    )


def test_dominated_methods_are_named_with_the_nearest_cell_that_beats_them(build, say):
    found = say(build.quickstart())["dominated"]
    assert found.figure == "2 of 3"
    assert found.text == (
        "At 50 % zeros, random and magnitude are dominated by wanda 0.5: at least as good in "
        "quality, speed and size, and better beyond its error."
    )


def test_only_like_is_compared_with_like(build, say):
    """SparseGPT at 2:4 is worse than wanda at 50 %, and better than wanda at 2:4."""
    records = [
        build.record(build.cell("dense"), 25.0, 1.0),
        build.record(build.cell("wanda", sparsity=0.5), 30.0, 1.0),
        build.record(build.cell("sparsegpt", sparsity="2:4"), 60.0, 1.0),
        build.record(build.cell("shortgpt", ratio=0.3), 90.0, 1.0),
    ]
    assert say(records)["dominated"].figure == "n/a"
    records.append(build.record(build.cell("wanda", sparsity="2:4"), 80.0, 1.0))
    found = say(records)["dominated"]
    assert found.figure == "1 of 2"
    assert found.text.startswith("With 2:4 zeros, wanda is dominated by sparsegpt 2:4: ")
    assert "shortgpt" not in found.text


def test_a_retrained_cell_does_not_beat_one_that_was_not(build, say):
    trained = build.cell("wanda", sparsity=0.5)
    repair = RecoveryRef(
        name="lora", distribution="d", version="1", given={"rank": 8}, data=trained.calibration
    )
    better = build.record(trained.model_copy(update={"recovery": repair}), 26.0, 1.0)
    records = [
        build.record(build.cell("dense"), 25.0, 1.0),
        build.record(build.cell("magnitude", sparsity=0.5), 60.0, 1.0),
        better,
    ]
    assert say(records)["dominated"].figure == "n/a"


def test_a_difference_within_the_error_dominates_nothing(build, say):
    records = [
        build.record(build.cell("dense"), 25.0, 1.0),
        build.record(build.cell("wanda", sparsity=0.5), 30.00, 1.0),
        build.record(build.cell("sparsegpt", sparsity=0.5), 30.01, 1.0),
    ]
    assert say(records)["dominated"].figure == "none"


def test_a_gate_inside_the_interval_is_no_verdict(build, say):
    """60.1 % [59.6, 60.6] is neither above nor below 60 %."""
    records = build.quickstart()
    fast = build.record(build.cell("shortgpt", ratio=0.2), 41.7, 1.5)
    found = say([records[0], fast], gate=0.6)
    assert {key: found[key].figure for key in ("quality", "speed")} == {
        "quality": "unsure",
        "speed": "unsure",
    }
    assert "No cell of that speed surely keeps 60 % of dense quality" in found["quality"].text
    assert "No pruned cell surely keeps 60 % of dense quality" in found["speed"].text


def test_a_long_label_is_shortened_and_named_once_for_all_that_it_beats(build, say):
    long = build.cell("wanda", sparsity=0.5, mode="clean")
    repair = RecoveryRef(
        name="lora", distribution="d", version="1", given={"rank": 8}, data=long.calibration
    )
    winner = long.model_copy(update={"recovery": repair})
    losers = [
        build.record(
            build.cell(name, sparsity=0.5).model_copy(update={"recovery": repair}), 99.0, 1.0
        )
        for name in ("random", "imp", "magnitude")
    ]
    found = say([build.quickstart()[0], build.record(winner, 30.0, 1.0), *losers])["dominated"]
    assert found.text.startswith(
        "At 50 % zeros, after lora, random, imp and magnitude are dominated by "
        "wanda 0.5 clean + lora: "
    )
    assert cells_of(found) == [winner.id]


def test_zeros_without_speed_up_are_named_with_the_measured_ratio(build, say):
    found = say(build.quickstart())["zeros"]
    assert "10 % to 50 % zeros in dense tensors bring no speed-up" in found.text
    assert (
        f"0.99{TIMES} (magnitude sparsity=0.5) to 1.00{TIMES} (random sparsity=0.5)" in found.text
    )


def test_sparsities_are_ordered_as_numbers(build, say):
    records = [build.quickstart()[0]]
    records += [build.record(build.cell("wanda", sparsity=s), 30.0, 1.0) for s in (0.05, 0.5, 0.1)]
    assert say(records)["zeros"].text.startswith("5 % to 50 % zeros")


def test_a_speed_up_without_a_cause_is_a_measuring_fault_and_wins_nothing(build, say):
    fast = build.record(build.cell("wanda", sparsity=0.3), 25.0, 1.4)
    found = say([build.quickstart()[0], fast], gate=0.5)
    assert found["fault"].text.startswith(f"wanda sparsity=0.3 was timed at 1.40{TIMES}")
    assert "This is a fault of the measurement, not a speed-up" in found["fault"].text
    assert cells_of(found["fault"]) == [fast.id]
    assert found["quality"].figure == "none"
    assert found["speed"].figure == f"1.00{TIMES}"
    assert "zeros" not in found


def test_without_dense_nothing_relative_is_claimed(build, say):
    (found,) = say(build.quickstart()[2:5]).values()
    assert found.key == "no-dense"
    assert "wanda sparsity=0.5" in found.text


def test_when_nothing_finished_the_statuses_are_counted(build, say):
    records = [build.failed(build.cell("wanda")), build.failed(build.cell("random"), "timeout")]
    (found,) = say(records).values()
    assert found.text == "No cell gave a result: 1 failed, 1 timeout."


def test_one_dense_cell_alone_has_nothing_to_say(build, say):
    (found,) = say(build.quickstart()[:1]).values()
    assert found.text == "No pruned cell gave a result yet."


def test_each_model_has_its_own_verdict(build):
    statements = verdict.section(build.given([*build.quickstart(), *build.quickstart("other")]))
    questions = [one.question for one in statements if one.key == "quality"]
    assert [question.partition(" (")[2] for question in questions] == [
        "smollm2-135m-instruct)",
        "other)",
    ]


def test_fast_cells_of_unknown_quality_are_not_called_slow(build, say):
    records = build.quickstart()
    records[-1].quality = None
    assert "quality" not in say(records)


def test_cells_that_were_not_timed_are_judged_by_quality_alone(build, say):
    records = build.quickstart()
    for record in records:
        record.speed = None
    assert set(say(records)) == set()
    assert set(say(records, gate=0.99)) == {"speed"}


def contended(cell, share=0.4):
    """The record of a run from before rounds were watched, timed beside others."""
    load = CpuLoad(phase="latency", wall_s=9.0, others_share=share, steal_share=0.0)
    cell.contention = Contention(cpu=[load], gpu=None)
    return cell


def test_a_cell_that_was_timed_beside_others_wins_nothing(build, say):
    records = build.quickstart()[:1]
    records.append(contended(build.record(build.cell("shortgpt", ratio=0.2), 25.0, 1.5)))
    found = say(records, gate=0.5)
    assert "quality" not in found
    assert "speed" not in found
    records[-1] = contended(records[-1], share=0.02)
    assert say(records, gate=0.5)["quality"].figure != "none"


def test_rounds_that_were_watched_do_not_mind_what_else_happened_in_the_phase(build, say):
    cell = contended(build.record(build.cell("shortgpt", ratio=0.2), 25.0, 1.5))
    cell.samples.latency[0].disturbed = [None] * 8
    assert say([build.quickstart()[0], cell], gate=0.5)["quality"].figure != "none"
