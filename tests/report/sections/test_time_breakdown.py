"""Where the time goes, execution forms and 2:4 kernels: shown, and never in place of the headline."""

from __future__ import annotations

import pytest

from prunebench_report.data import table as frames
from prunebench_report.sections import speed
from prunebench_report.sections import time_breakdown as where
from shown import view


def test_the_parts_of_every_bar_add_up_to_its_total(build):
    records = build.quickstart()
    [model] = where.section(records, {record.id: record.cell.label for record in records})
    assert model["rows"][0]["name"] == "dense"
    assert len(model["rows"]) == len(records)
    for row in model["rows"]:
        for kind in ("prompt", "token", "bytes"):
            rects = row[kind]["rects"]
            ends = [float(one["x"]) + float(one["width"]) for one in rects]
            assert all(
                float(b["x"]) == pytest.approx(end, abs=0.11)
                for b, end in zip(rects[1:], ends, strict=False)
            )
            assert ends[-1] <= where.WIDTH + 0.3
    assert float(model["rows"][0]["token"]["rects"][-1]["x"]) > 380  # dense is the longest
    assert "MLP 52 %" in model["rows"][0]["token"]["words"].replace("\N{NO-BREAK SPACE}", " ")


def test_the_claims_are_judged_on_dense(build):
    records = build.quickstart()
    [model] = where.section(records, {record.id: record.cell.label for record in records})
    assert model["claims_of"] == "dense"
    holds = {one["claim"]: one["holds"] for one in model["claims"]}
    assert holds["attention and MLP both matter"] == "holds here"
    assert holds["the MLP is about two thirds of the bytes that both load"] == "holds here"
    assert holds["communication between devices is small"] == "cannot be seen here"
    assert set(holds.values()) <= set(where.VERDICTS.values())
    [pruned] = where.section(records[1:3], {record.id: record.cell.label for record in records})
    assert pruned["claims"] == []


def test_a_split_without_time_breaks_nothing(build):
    records = build.quickstart()[:1]
    for part in records[0].speed.breakdown.parts:
        part.token_s = part.prompt_s = 0.0
    [model] = where.section(records, {records[0].id: "dense"})
    assert model["claims"] == []
    assert model["rows"][0]["token"]["rects"] == []


def test_kernels_stand_beside_the_headline_not_in_its_place(build):
    records = build.quickstart()
    one = build.with_kernels(records[4], 1.31)
    row = next(row for row in frames.plain(records, 0.95) if row["cell"] == one.id)
    assert row["inter_token_speedup"] == pytest.approx(0.997)
    assert row["sparse24_speedup"] == pytest.approx(1.31)
    assert row["io_utilisation"] > 0.1  # the floor of the weights as stored
    assert "inter_token_speedup_2" not in row
    assert len(speed.stored(one)) == 1
    assert "with 2:4 kernels 1.31" in speed.said(one)


def test_the_report_shows_kernels_where_they_ran(build, tmp_path):
    records = build.quickstart()
    build.with_kernels(records[4], 1.31)
    shown = view(build.store(tmp_path / "run", records))
    assert "sparse24_speedup" in [one["key"] for one in shown["table"]["columns"]]
    card = next(one for one in shown["cards"] if one["id"] == records[4].id)
    assert any("2:4 kernels" in one["shape"] for one in card["speed"])
    facts = dict(card["audit"])
    assert facts["Speed-up found"].startswith("measured 1.00")


def test_other_execution_forms_and_missing_pairs_are_warned_of(build, tmp_path):
    records = build.quickstart()
    records[1].speed.latency[0].execution = "compiled"
    for record in records[2:4]:
        record.speed.latency[0].unpaired = "the dense model takes 9.0 GB"
        record.speed.latency[0].inter_token_speedup = None
    text = " ".join(view(build.store(tmp_path / "run", records))["warnings"])
    assert "different execution forms (7 eager, 1 compiled)" in text
    assert "2 cells not timed between rounds of dense: the dense model takes 9.0 GB" in text
    assert "interleaved" not in text


@pytest.mark.parametrize(
    ("index", "word"),
    [(0, "none"), (1, "unstructured"), (4, "n:m"), (6, "layers")],
    ids=lambda one: str(one),
)
def test_what_was_pruned_is_told_from_the_counts(build, index, word):
    assert frames.granularity(build.quickstart()[index].audit) == word
