"""Runtimes in the table, the section, the cards and a comparison."""

from __future__ import annotations

import pytest

from prunebench.experiment.plugins import RuntimeRef
from prunebench.record.record import Record
from prunebench.record.runtimes import (
    Conversion,
    RuntimeLatency,
    RuntimeResult,
    TokenAgreement,
)
from prunebench.record.speed import Ratio
from prunebench_report import compare, render
from prunebench_report.data.table import build_table
from prunebench_report.sections import cards, runtimes
from prunebench_report.text import TIMES

FAST = RuntimeRef(name="fast", distribution="x", version="1", options={"precision": "fp32"})
SMALL = FAST.model_copy(update={"options": {"precision": "int8"}, "given": {"precision": "int8"}})


def timed(build, speedup, difference=None, *, bursts=False) -> RuntimeLatency:
    ratio = speedup and Ratio(estimate=speedup, low=speedup - 0.01, high=speedup + 0.01, rounds=8)
    return RuntimeLatency(
        prompt=128,
        new_tokens=32,
        threads=2,
        rounds=8,
        bursts=bursts,
        ttft_s=build.summary([0.1] * 8),
        token_s=build.summary([0.01 / (speedup or 1)] * 8),
        token_speedup=ratio,
        tokens=TokenAgreement(
            compared=32, first_difference=difference, margin=difference and 0.5, rounding=1e-4
        ),
    )


def served(record: Record, *results: tuple[RuntimeRef, RuntimeLatency | str]) -> Record:
    refs = tuple(ref for ref, _ in results)
    found = [
        RuntimeResult(
            runtime=ref.label,
            precision=ref.options["precision"],
            versions={"engine": "2.0"},
            reason=one if isinstance(one, str) else None,
            conversion=None
            if isinstance(one, str)
            else Conversion(seconds=3.0, bytes=2_000_000, earlier=False),
            latency=[] if isinstance(one, str) else [one],
        )
        for ref, one in results
    ]
    cell = record.cell.model_copy(update={"runtimes": refs})
    return record.model_copy(update={"cell": cell, "id": cell.id, "runtimes": found})


@pytest.fixture
def records(build) -> list[Record]:
    dense, _, _, wanda, *_, shortgpt = build.quickstart()
    return [
        served(dense, (FAST, timed(build, None)), (SMALL, timed(build, None))),
        served(wanda, (FAST, "it has no kernel"), (SMALL, timed(build, 1.002, 4))),
        served(shortgpt, (FAST, timed(build, 1.31)), (SMALL, timed(build, 1.2, 9, bursts=True))),
    ]


def test_each_runtime_has_its_columns(records):
    dense, wanda, shortgpt = build_table(records, 0.95)
    assert shortgpt["runtime"] == "fast"
    assert (shortgpt["runtime_speedup"], shortgpt["runtime_speedup_low"]) == (1.31, 1.3)
    assert shortgpt["runtime_tokens"] == "same 32 tokens"
    assert shortgpt["runtime_protocol"] == (
        "fast, fp32, prompt 128, 32 new tokens, batch 1, 2 threads, engine 2.0"
    )
    assert shortgpt["runtime_2"] == "fast precision=int8"
    assert shortgpt["runtime_tokens_2"] == "other tokens from 10 of 32 on"
    assert shortgpt["runtime_token_p99_s"] is not None
    assert shortgpt["runtime_token_p99_s_2"] is None  # bursts have no tail
    assert (wanda["runtime_reason"], wanda["runtime_speedup"]) == ("it has no kernel", None)
    assert dense["runtime_speedup"] is None
    assert {row["dense_cell"] for row in (wanda, shortgpt)} == {records[0].id}


def test_the_section_shows_the_speed_up_beside_what_the_bytes_allow(build, records):
    [table] = runtimes.section(build.given(records))
    assert [head["name"] for head in table["heads"]] == [
        "the bytes allow",
        "prunebench",
        "fast",
        "fast precision=int8",
    ]
    rows = {row["name"]: row["cells"] for row in table["rows"]}
    allowed, own, fast, small = rows["shortgpt ratio=0.25"]
    assert allowed["text"] == f"1.26{TIMES}"
    assert own["text"] == f"1.32{TIMES}"
    assert (fast["text"], fast["tone"]) == (f"1.31{TIMES}", "better")
    assert fast["note"] == "1.30 to 1.32; 7.63 ms a token, same 32 tokens"
    assert "other tokens from 10 of 32 on, as int8 may" in small["note"]
    assert rows["wanda sparsity=0.5"][2]["note"] == "it has no kernel"
    assert rows["wanda sparsity=0.5"][3]["tone"] is None  # the interval contains 1
    assert rows["dense"][2]["text"] == "10.0 ms"


def test_the_page_and_the_card_have_it(build, records, tmp_path):
    page = render(build.store(tmp_path / "run", records))
    assert 'href="#runtimes"' in page
    found = {card["name"]: dict(card["runtimes"]) for card in cards.section(build.given(records))}
    words = found["shortgpt ratio=0.25"]
    [small] = [text for name, text in words.items() if "int8" in name]
    assert "tokens come in bursts" in small
    assert small.endswith("converted in 3.00 s to 2.00 MB")


def test_without_runtimes_there_are_no_columns_and_no_section(build, tmp_path):
    plain = build.quickstart()
    assert not [key for key in build_table(plain, 0.95)[0] if key.startswith("runtime")]
    assert 'id="runtimes"' not in render(build.store(tmp_path / "run", plain))


def test_a_comparison_judges_the_speed_up_in_each_engine(build, records, tmp_path):
    slower = [
        *records[:2],
        served(records[2], (FAST, timed(build, 1.1)), (SMALL, timed(build, 1.205, 9))),
    ]
    a = build.store(tmp_path / "a", records).folder
    b = build.store(tmp_path / "b", slower).folder
    found = compare(a, b)
    [row] = [row for row in found["rows"] if row["name"] == "shortgpt ratio=0.25"]
    cells = dict(zip(found["heads"], row["cells"], strict=True))
    fast = cells["speed-up in fast, prompt 128, 32 new tokens"]
    assert fast["values"] == f"1.31{TIMES} to 1.10{TIMES}"
    assert (fast["significant"], fast["tone"]) == (True, "worse")
    small = cells["speed-up in fast precision=int8, prompt 128, 32 new tokens"]
    assert small["significant"] is False
