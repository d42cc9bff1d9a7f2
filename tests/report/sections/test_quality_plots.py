"""Plots of whatever a run may give."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunebench.experiment.plugins import RecoveryRef
from prunebench.record.devices import Contention, CpuLoad
from prunebench_report.sections.quality_plots import figures, section

positive = st.floats(1e-6, 1e300)
ratio = st.floats(1e-3, 1e3)
values = st.fixed_dictionaries(
    {
        "perplexity": st.none() | positive,
        "recovery_percent": st.none() | st.floats(0, 1e4),
        "inter_token_speedup": st.none() | ratio,
        "inter_token_p50_s": st.none() | st.floats(0, 1e4),
        "disk_bytes": st.none() | st.integers(0, 10**13),
        "method": st.sampled_from(
            ["dense", *"abcdefghij", "$\\frac{1}{2}$", "\u526a\u679d", "<b>"]
        ),
    }
)


def plots(inputs):
    """The plots of a report of one model, by caption."""
    [model] = section(inputs)
    return {one.caption: one for one in model.figures}


def row(number, given_values):
    bare = dict.fromkeys(
        f"{key}_{end}" for key in ("inter_token_speedup", "perplexity") for end in ("low", "high")
    )
    label = f"{given_values['method']} sparsity=0.5"
    return (
        {"cell": f"{number:016x}", "name": label, "label": label, "status": "ok", "model": "m"}
        | bare
        | given_values
    )


@settings(max_examples=25)
@given(st.lists(values, max_size=12), st.floats(0.01, 1))
def test_any_numbers_make_well_formed_figures(cells, gate):
    rows = [row(number, one) for number, one in enumerate(cells)]
    methods = [one["method"] for one in cells if one["method"] != "dense"]
    for drawn in figures(rows, gate, methods, {}):
        for one in drawn.figures:
            tree = ET.fromstring(one.svg)
            assert tree.get("role") == "group"
            assert "nan" not in one.svg.lower().replace("dominan", "")


@pytest.mark.parametrize("gate", [0.05, 0.95])
def test_the_gate_is_drawn_only_if_the_axis_reaches_it(build, gate):
    near = [record for record in build.quickstart() if record.quality.perplexity[0].perplexity < 30]
    records = [*near, build.record(build.cell("shortgpt", ratio=0.2), 26.0, 1.2)]
    speed = plots(build.given(records, gate=gate))["Quality against speed"]
    assert ("gate" in speed.svg) == (gate > 0.5)


def mark_of(svg, record):
    return re.search(rf'href="#row-{record.id}"><title>.*?<use href="#(k\d)" class="([^"]+)"', svg)


def test_dominated_marks_are_hollow_and_the_others_filled(build):
    records = build.quickstart()
    svg = plots(build.given(records))["Quality against speed"].svg
    assert "hollow" in mark_of(svg, records[3])[2]
    assert "hollow" not in mark_of(svg, records[7])[2]


def test_methods_differ_in_shape_not_only_in_colour(build):
    records = build.quickstart()
    svg = plots(build.given(records))["Quality against speed"].svg
    assert len({mark_of(svg, record)[1] for record in records[1:]}) == 4


def test_without_dense_perplexity_is_drawn_against_time(build):
    found = plots(build.given(build.quickstart()[1:]))
    assert list(found) == [
        "Quality against what is pruned",
        "Quality against speed",
        "Quality against size",
    ]
    assert "Inter-token latency, ms" in found["Quality against speed"].svg
    assert "Size on disk, MB" in found["Quality against size"].svg


@pytest.mark.parametrize(
    ("caption", "arrow"),
    [
        ("Quality against what is pruned", "↑"),
        ("Quality against speed", "↗"),
        ("Quality against memory", "↖"),
        ("Quality against size", "↙"),
    ],
)
def test_the_arrow_points_to_what_is_better_in_both_directions(build, caption, arrow):
    assert f">better {arrow}</text>" in plots(build.given(build.quickstart()))[caption].svg


def test_an_extreme_value_is_drawn_at_the_edge_and_the_plot_says_so(build):
    records = build.quickstart()
    records[1].quality.perplexity[0] = build.perplexity(3e8)
    size = plots(build.given(records))["Quality against size"]
    assert size.notes == ("Beyond the axis, drawn at its edge: random sparsity=0.5 (3.00e8).",)
    assert ">random 0.5: 3.0e8 ↑</text>" in size.svg
    ticks = re.search(r'<g class="tick" text-anchor="end">(.*?)</g>', size.svg)[1]
    assert ticks.endswith(">1,000</text>")
    assert plots(build.given(build.quickstart()))["Quality against size"].notes == ()


def test_cells_that_differ_only_in_quality_make_no_vertical_line(build):
    dense, *_ = build.quickstart()
    amounts = (0.1, 0.3, 0.5, 0.7)
    grid = [
        build.record(build.cell(method, seed=seed, sparsity=amount), value, 1.0)
        for seed in (0, 1)
        for method, factor in (("wanda", 40), ("magnitude", 90))
        for amount in amounts
        for value in [25 + factor * amount + seed]
    ]
    [model] = section(build.given([dense, *grid]))
    [one] = model.figures
    assert one.caption == "Quality against what is pruned"
    assert [entry.name for entry in one.legend] == ["wanda", "magnitude"]
    assert one.svg.count('class="range') == 8  # the seeds' spread at each point
    assert "wanda: 84.9 at 10.0 %" in one.desc
    assert [note.partition(",")[0] for note in model.notes] == [
        "Quality against speed is not drawn",
        "Quality against memory is not drawn",
        "Quality against size is not drawn",
    ]


def test_a_line_has_the_cells_that_differ_only_in_how_much_they_prune(build):
    records = build.quickstart()
    one = plots(build.given(records))["Quality against what is pruned"]
    assert {entry.name for entry in one.legend} == {
        "wanda",
        "wanda sparsity=2:4",
        "shortgpt",
        "random",
        "magnitude",
    }
    line = re.search(r'<g class="line c2 d0">(.*?)</g>', one.svg)[1]
    assert line.count("<line") == 1  # from wanda 0.1 to wanda 0.5


def test_tooltips_name_the_cell_and_its_numbers(build):
    svg = plots(build.given(build.quickstart()))["Quality against size"].svg
    assert "<title>wanda sparsity=0.5: Size on disk, MB 538, Perplexity (log) 52.3</title>" in svg


def test_names_that_look_like_formulas_or_markup_stay_text(build):
    strange = build.record(build.cell("$\\frac{<b>", ratio=0.1), 40.0, 1.2)
    svg = plots(build.given([build.quickstart()[0], strange]))["Quality against speed"].svg
    assert "$\\frac{&lt;b&gt; 0.1</text>" in svg


def test_a_recovery_is_named_without_its_options(build):
    dense, *_ = build.quickstart()
    plain = build.cell("shortgpt", ratio=0.1)
    data = plain.calibration
    lora = RecoveryRef(
        name="lora", distribution="prunebench", version="0.1.0", given={"rank": 8}, data=data
    )
    repaired = build.record(plain.model_copy(update={"recovery": lora}), 40.0, 1.1)
    svg = plots(build.given([dense, repaired]))["Quality against speed"].svg
    assert ">shortgpt 0.1 + lora</text>" in svg
    assert "<title>shortgpt ratio=0.1 + lora rank=8:" in svg


def test_figures_say_in_words_what_they_show_and_link_to_rows(build):
    records = build.quickstart()
    _, speed, memory, size = section(build.given(records))[0].figures
    assert "Not dominated: dense, shortgpt ratio=0.1, shortgpt ratio=0.25." in speed.desc
    for record in records[1:]:
        assert f'href="#row-{record.id}"' in speed.svg
    assert "Weights in memory, MB" in memory.desc
    assert len(size.svg) < 10_000


def test_every_model_has_figures_of_its_own(build):
    drawn = section(build.given([*build.quickstart(), *build.quickstart("other")]))
    assert [one.model for one in drawn] == ["smollm2-135m-instruct", "other"]
    captions = [
        "Quality against what is pruned",
        "Quality against speed",
        "Quality against memory",
        "Quality against size",
    ]
    assert all([one.caption for one in model.figures] == captions for model in drawn)


def test_a_cell_timed_beside_others_is_grey_hollow_and_on_no_frontier(build):
    records = [*build.quickstart()[:1], build.record(build.cell("shortgpt", ratio=0.2), 24.0, 1.1)]
    contended = build.record(build.cell("shortgpt", ratio=0.1), 22.0, 1.5)
    load = CpuLoad(phase="latency", wall_s=9.0, others_share=0.4, steal_share=0.0)
    contended.contention = Contention(cpu=[load])
    speed = plots(build.given([*records, contended]))["Quality against speed"]
    assert mark_of(speed.svg, contended)[2].endswith("hollow grey")
    front = speed.desc.partition("Not dominated")[2]
    assert "ratio=0.2" in front
    assert "ratio=0.1" not in front


def test_of_many_cells_on_a_line_some_are_drawn_and_the_plot_says_so(build):
    many = [build.record(build.cell("wanda", sparsity=n / 100), 25 + n, 1.0) for n in range(1, 65)]
    one = plots(build.given([*build.quickstart()[:1], *many]))["Quality against what is pruned"]
    assert one.notes == ("24 of 64 cells are drawn.",)
    assert f'href="#row-{many[0].id}"' in one.svg
    assert f'href="#row-{many[-1].id}"' in one.svg


def test_error_bars_are_inside_the_plot(build):
    dense, *_ = build.quickstart()
    noisy = [
        build.record(build.cell("random", seed=seed, sparsity=amount), value, 1.0)
        for amount in (0.2, 0.4)
        for seed, value in enumerate((18.0, 24.0))
    ]
    one = plots(build.given([dense, *noisy]))["Quality against what is pruned"]
    bars = re.findall(r'class="range[^>]*y1="([^"]+)"[^>]*y2="([^"]+)"', one.svg)
    assert len(bars) == 2
    assert all(float(high) > 0 and float(low) < 260 for low, high in bars)
