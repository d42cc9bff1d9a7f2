"""Latency and throughput over batch size and prompt length."""

from __future__ import annotations

import re

from prunebench_report import render
from prunebench_report.sections import quality_plots
from prunebench_report.sections.speed_plots import section


def at_shapes(build, records, **shapes):
    """The records, also timed at each value of one axis: twice as slow at each."""
    [(axis, values)] = shapes.items()
    for record in records:
        [first] = record.speed.latency
        for factor, value in enumerate(values, start=2):
            slower = build.summary([factor * first.inter_token_s.median] * 5)
            update = {axis: value, "inter_token_s": slower}
            record.speed.latency.append(first.model_copy(update=update))
    return records


def test_a_run_with_one_shape_has_no_such_plots(build, tmp_path):
    assert section(build.given(build.quickstart())) == []
    assert 'id="shapes"' not in render(build.store(tmp_path / "run", build.quickstart()))


def test_batch_sizes_make_a_line_for_each_cell_with_dense_first(build, tmp_path):
    records = at_shapes(build, build.quickstart(), batch_size=(4, 16))
    [model] = section(build.given(records))
    assert [one.caption.partition(":")[0] for one in model["figures"]] == [
        "TTFT over batch size",
        "Inter-token latency over batch size",
        "Throughput over batch size",
    ]
    between = model["figures"][1]
    assert between.caption.endswith("prompt 128, 32 new tokens")
    assert model["legend"][0].name == "dense"
    assert len(model["legend"]) == 8
    # The marks are those of the trade-offs.
    [trade] = quality_plots.section(build.given(records))
    marks = {entry.name: entry.mark for entry in trade.legend}
    assert [entry.mark for entry in model["legend"] if entry.name == "wanda 0.5"] == [
        marks["wanda"]
    ]
    ticks = re.search(r'<g class="tick" text-anchor="middle">(.*?)</g>', between.svg)[1]
    assert re.findall(r">(\d+)</text>", ticks) == ["1", "4", "16"]
    assert ">better ↓</text>" in between.svg
    assert ">better ↑</text>" in model["figures"][2].svg
    assert 'href="#shapes"' in render(build.store(tmp_path / "run", records))


def test_prompt_lengths_have_plots_of_their_own(build):
    records = at_shapes(build, build.quickstart()[:3], prompt=(512,))
    [model] = section(build.given(records))
    assert all("over prompt length: batch 1" in one.caption for one in model["figures"])


def test_of_many_cells_some_of_every_method_are_drawn(build):
    many = [build.record(build.cell("wanda", sparsity=n / 20), 30.0, 1.0) for n in range(1, 13)]
    records = at_shapes(build, [*build.quickstart()[:1], *many], batch_size=(8,))
    [model] = section(build.given(records))
    assert len(model["legend"]) == 8
    assert model["left_out"] == 5


def test_other_cells_come_before_further_seeds(build):
    cells = [
        build.record(build.cell("wanda", seed=seed, sparsity=n / 10), 30.0, 1.0)
        for n in range(1, 7)
        for seed in (0, 1)
    ]
    records = at_shapes(build, [*build.quickstart()[:1], *cells], batch_size=(8,))
    [model] = section(build.given(records))
    names = [entry.name for entry in model["legend"]]
    assert names[:7] == ["dense", "wanda 0.1 · seed 0", "wanda 0.1 · seed 1"] + [
        f"wanda 0.{n} · seed 0" for n in range(2, 6)
    ]
    assert names[7] == "wanda 0.6 · seed 0"
