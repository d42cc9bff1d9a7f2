"""Where the time goes, by part of the model."""

from __future__ import annotations

import re

import pytest

from prunebench_report.sections import time_breakdown


def test_the_parts_of_every_bar_add_up_to_its_total(build):
    records = build.quickstart()
    [model] = time_breakdown.section(build.given(records))
    assert model["rows"][0]["name"] == "dense"
    assert len(model["rows"]) == len(records)
    for row in model["rows"]:
        for kind in ("prompt", "token", "bytes"):
            # In per cent of the longest bar; each part begins where the one before it ends.
            ends = [float(one["end"]) for one in row[kind]["rects"]]
            assert ends == sorted(ends)
            assert ends[-1] <= 100
            lengths = [end - begin for begin, end in zip([0.0, *ends], ends, strict=False)]
            shares = [int(share) / 100 for share in re.findall(r"(\d+)\s%", row[kind]["words"])]
            assert [length / ends[-1] for length in lengths] == pytest.approx(shares, abs=0.006)
    assert float(model["rows"][0]["token"]["rects"][-1]["end"]) == 100  # dense is the longest
    assert "MLP 52 %" in model["rows"][0]["token"]["words"].replace("\N{NO-BREAK SPACE}", " ")


def test_the_claims_are_judged_on_dense(build):
    records = build.quickstart()
    [model] = time_breakdown.section(build.given(records))
    assert model["claims_of"] == "dense"
    holds = {one["claim"]: one["holds"] for one in model["claims"]}
    assert holds["attention and MLP both matter"] == "holds here"
    assert holds["the MLP is about two thirds of the bytes that both load"] == "holds here"
    assert holds["communication between devices is small"] == "cannot be seen here"
    assert set(holds.values()) <= set(time_breakdown.VERDICTS.values())
    [pruned] = time_breakdown.section(build.given(records[1:3]))
    assert pruned["claims"] == []


def test_a_split_without_time_breaks_nothing(build):
    records = build.quickstart()[:1]
    for part in records[0].speed.breakdown.parts:
        part.token_s = part.prompt_s = 0.0
    [model] = time_breakdown.section(build.given(records))
    assert model["claims"] == []
    assert model["rows"][0]["token"]["rects"] == []


def test_one_outlier_is_cut_and_says_so_while_the_others_keep_their_length(build):
    records = build.quickstart()
    for part in records[3].speed.breakdown.parts:
        part.prompt_s *= 40
    [model] = time_breakdown.section(build.given(records))
    cut = [row["prompt"]["cut"] for row in model["rows"]]
    assert cut == [index == 3 for index in range(len(records))]
    ends = [float(row["prompt"]["rects"][-1]["end"]) for row in model["rows"]]
    assert ends[3] == 100
    assert 55 < ends[0] < 100
    assert model["rows"][3]["prompt"]["total"] == "5.70 s"
    assert not any(row["token"]["cut"] for row in model["rows"])
