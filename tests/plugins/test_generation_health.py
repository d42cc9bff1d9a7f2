"""Generation health: repetition, loops and ends of texts that are known, and the samples."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import report_builder as build
from prunebench.experiment.plugins import MetricRef
from prunebench.plugin.api.metric import LONGEST_METRIC_NOTES, MetricContext
from prunebench.record.quality import MetricFigure, MetricResult
from prunebench.testing import MetricContract
from prunebench_plugins.generation_health import (
    GenerationHealth,
    GenerationSamples,
    draw_prompts,
    loop_period,
    repetition,
)
from prunebench_report import render
from prunebench_report.sections import plugin_sections
from tiny import tiny_model, tiny_tokenizer

WINDOWS = torch.arange(2, 2 + 5 * 40).reshape(5, 40)
END = 1


class TestGenerationHealth(MetricContract):
    metric, families = GenerationHealth, ("llama", "opt")


def judged(monkeypatch, texts: list[list[int]], **options):
    """The figures and notes of a model that writes these texts."""
    context = MetricContext(WINDOWS, 0, lambda: None, end_tokens={END})

    def write(model, prompts, new_tokens):
        return [torch.tensor(texts.pop(0)) for _ in prompts]

    monkeypatch.setattr(context, "greedy_continuations", write)
    given = {"prompts": len(texts), "loop_tokens": 6, "least_tokens": 4, **options}
    metric = GenerationHealth(GenerationHealth.Options(**given))
    return metric.measure(None, tiny_tokenizer(), context), context.notes


def test_each_fault_is_counted_once_and_a_text_without_any_is_healthy(monkeypatch) -> None:
    figures, notes = judged(
        monkeypatch,
        [
            [9, 8, 7, 6, 5, 4, 3, 2],  # healthy
            [9, 8, 3, 4, 3, 4, 3, 4],  # a loop of two tokens
            [9, 8, END],  # ends too early
            [3, 4, 3, 4, 3, 4, 3, 4, END],  # ended: it has left its loop
            [5, 5, 5, 5, 5, 5, 5, 5],  # a loop of one token
        ],
        batch_size=2,
    )
    assert figures == {
        "generation-health": 2 / 5,
        "loops": 2 / 5,
        "premature-ends": 1 / 5,
        # 4-grams: 5 of 5 distinct; 9834 8343 3434 4343 3434; 3434 4343 3434 4343 3434; one of five
        "repetition": pytest.approx((0 + 1 / 5 + 3 / 5 + 4 / 5) / 4),
    }
    assert [one["loop"] for one in notes["samples"]] == [None, 2, None]
    assert [one["ended"] for one in notes["samples"]] == [False, False, True]
    assert notes["samples"][2]["text"] == tiny_tokenizer().decode([9, 8])


def test_texts_shorter_than_an_n_gram_leave_repetition_open(monkeypatch) -> None:
    figures, _ = judged(monkeypatch, [[END], [9, 8, END]])
    assert figures == {"generation-health": 0.0, "loops": 0.0, "premature-ends": 1.0}


def test_samples_are_bounded_for_the_longest_texts(monkeypatch) -> None:
    _, notes = judged(monkeypatch, [list(range(2, 300)) * 9] * 5, prompt=40)
    assert len(notes["samples"]) == 3
    assert max(len(one["text"]) for one in notes["samples"]) == 700
    assert len(json.dumps(notes)) < LONGEST_METRIC_NOTES // 4


@pytest.mark.parametrize(
    ("tokens", "period"),
    [
        ([1, 2, 3, 1, 2, 3, 1, 2, 3], 3),
        ([7, 7, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1], 3),  # the last piece may be cut
        ([1, 2, 3, 1, 2, 3, 1, 2], None),  # not three times
        ([1, 2, 1, 2, 1, 2, 9], None),  # not at the end
        ([4, 4, 4, 4], None),  # three times, but fewer than five tokens
        ([4, 4, 4, 4, 4], 1),
        ([1, 1, 2, 1, 1, 2, 1, 1, 2], 3),
        ([], None),
    ],
)
def test_a_loop_is_a_piece_that_fills_the_end_three_times(tokens, period) -> None:
    assert loop_period(tokens, repeats=3, least=5) == period


@settings(max_examples=200)
@given(st.lists(st.integers(0, 2), max_size=24), st.integers(2, 4), st.integers(0, 8))
def test_loops_are_those_that_a_search_by_slices_finds(tokens, repeats, least) -> None:
    def loops(period: int) -> bool:
        size = max(repeats * period, least)
        tail = tokens[-size:]
        return len(tail) == size and all(a == b for a, b in zip(tail, tail[period:], strict=False))

    periods = [period for period in range(1, len(tokens) // repeats + 1) if loops(period)]
    assert loop_period(tokens, repeats, least) == (periods[0] if periods else None)


def test_repetition_is_the_share_of_n_grams_that_came_before() -> None:
    assert repetition([1, 2, 3, 4, 5], 4) == 0
    assert repetition([1, 2, 1, 2, 1, 2], 2) == pytest.approx(3 / 5)
    assert repetition([1] * 10, 1) == pytest.approx(9 / 10)


def test_prompts_are_different_pieces_that_the_seed_draws() -> None:
    drawn = draw_prompts(WINDOWS, 20, 8, seed=0)
    assert drawn.shape == (20, 8)
    # WINDOWS counts up, so a piece does so too and its first token says where it begins.
    assert torch.equal(drawn, drawn[:, :1] + torch.arange(8))
    assert len({int(one) for one in drawn[:, 0]}) == 20
    assert all((int(one) - 2) % 40 <= 32 for one in drawn[:, 0])
    assert torch.equal(drawn, draw_prompts(WINDOWS, 20, 8, seed=0))
    assert not torch.equal(drawn, draw_prompts(WINDOWS, 20, 8, seed=1))
    assert draw_prompts(WINDOWS, 1000, 8, seed=0).shape == (5 * 33, 8)
    assert draw_prompts(WINDOWS, 3, 64, seed=0).shape == (3, 40)


def test_the_cells_seed_changes_nothing_and_the_batch_neither() -> None:
    def measure(seed: int, **options):
        context = MetricContext(WINDOWS, seed, lambda: None, end_tokens={END})
        metric = GenerationHealth(GenerationHealth.Options(prompts=5, new_tokens=30, **options))
        return metric.measure(tiny_model("llama"), tiny_tokenizer(), context), context.notes

    assert measure(0) == measure(7) == measure(0, batch_size=2)
    assert measure(0)[1] != measure(0, prompt_seed=1)[1]


REF = MetricRef(name="generation-health", distribution="prunebench", version="0.1.0")
EVIL = "<script>alert(1)</script>\n\u202e"


def writing(record, text: str, healthy: float = 0.5, prompts=("Once", "Then", EVIL)):
    """The record with three samples of this text."""
    figures = {"generation-health": healthy, "loops": 0.25, "premature-ends": 0.25}
    samples = [
        {
            "prompt": prompt,
            "text": f"{text} {number}",
            "ended": number == 1,
            "loop": 5 * number // 2,
        }
        for number, prompt in enumerate(prompts)
    ]
    result = MetricResult(
        metric=REF.name,
        label=REF.label,
        distribution=REF.distribution,
        version=REF.version,
        figures=[
            MetricFigure(name=name, unit="share", higher_is_better=name == REF.name, value=value)
            for name, value in figures.items()
        ],
        seconds=1.0,
        notes={"samples": samples},
    )
    record.quality.metrics.append(result)
    return record


def blocks_of(records):
    found = plugin_sections.section(build.given(records), [GenerationSamples])
    assert all(one["problem"] is None for one in found)
    return found[0]["blocks"] if found else []


def test_each_cell_has_a_fold_with_its_texts_beside_denses() -> None:
    dense, _, _, wanda, *_ = build.quickstart()
    _, fold = blocks_of([writing(dense, "fluent", 1.0), writing(wanda, "stutter")])
    assert fold["title"] == (
        "wanda sparsity=0.5: 50 % healthy, 25 % end in a loop, 25 % end too early"
    )
    assert [one.get("text") for one in fold["blocks"][::2]] == [
        "Prompt: Once",
        "Prompt: Then",
        "Prompt: <script>alert(1)</script>\n\ufffd",
    ]
    assert fold["blocks"][1]["texts"] == [
        {"head": "dense", "text": "fluent 0"},
        {"head": "wanda sparsity=0.5", "text": "stutter 0"},
    ]
    assert [one["head"] for one in fold["blocks"][3]["texts"]] == [
        "dense (loop of 2 tokens)",
        "wanda sparsity=0.5 (loop of 2 tokens)",
    ]


def test_without_a_dense_sample_of_the_same_prompt_the_text_is_alone() -> None:
    dense, _, _, wanda, *_ = build.quickstart()
    _, fold = blocks_of([writing(dense, "fluent", prompts=("Other",)), writing(wanda, "stutter")])
    assert [one["head"] for one in fold["blocks"][1]["texts"]] == ["wanda sparsity=0.5"]


def test_what_models_write_is_escaped_in_the_page(tmp_path) -> None:
    dense, _, _, wanda, *_ = build.quickstart()
    records = [writing(dense, EVIL), writing(wanda, EVIL)]
    page = render(build.store(tmp_path / "run", records), sections=[GenerationSamples])
    assert "What the models write" in page
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 7


def test_a_large_run_says_how_many_cells_are_left_out(monkeypatch) -> None:
    dense = writing(build.quickstart()[0], "fluent")
    cells = [
        writing(build.record(build.cell("wanda", sparsity=number / 100), 26.0, 1.0), "stutter")
        for number in range(65)
    ]
    blocks = blocks_of([dense, *cells])
    assert len(blocks) == 60 + 2
    assert blocks[-1]["text"] == "The records have the samples of 5 more cells."


def test_records_without_samples_have_no_section(tmp_path) -> None:
    assert blocks_of(build.quickstart()) == []


@pytest.mark.parametrize("cells", [1, 60])
def test_a_run_whose_cells_all_fit_says_nothing_of_others(cells) -> None:
    dense = writing(build.quickstart()[0], "fluent")
    written = [
        writing(build.record(build.cell("wanda", sparsity=number / 100), 26.0, 1.0), "stutter")
        for number in range(cells)
    ]
    blocks = blocks_of([dense, *written])
    assert len(blocks) == cells + 1
    assert "more cells" not in str(blocks)


def test_a_sample_has_the_end_of_its_prompt_and_the_beginning_of_its_text(monkeypatch) -> None:
    class Digits:
        def decode(self, tokens) -> str:
            return "".join(f"{token:09}," for token in tokens)

    monkeypatch.setitem(globals(), "tiny_tokenizer", Digits)
    _, notes = judged(monkeypatch, [list(range(2, 102))], prompt=40)
    [sample] = notes["samples"]
    first = int(draw_prompts(WINDOWS, 1, 40, seed=0)[0, 0])
    assert sample["prompt"] == Digits().decode(range(first + 10, first + 40))
    assert sample["text"] == Digits().decode(range(2, 72))
