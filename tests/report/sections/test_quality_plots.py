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
    for drawn in figures([row(number, one) for number, one in enumerate(cells)], gate):
        tree = ET.fromstring(drawn.svg)
        assert tree.get("role") == "group"
        assert "nan" not in drawn.svg.lower().replace("dominan", "")


@pytest.mark.parametrize("gate", [0.05, 0.95])
def test_the_gate_is_drawn_only_if_the_axis_reaches_it(build, gate):
    near = [record for record in build.quickstart() if record.quality.perplexity[0].perplexity < 30]
    speed = section(build.given(near, gate=gate))[0]
    assert ("gate" in speed.svg) == (gate > 0.5)


def test_dominated_marks_are_hollow_and_the_others_filled(build):
    records = build.quickstart()
    svg = section(build.given(records))[0].svg

    def fill(record):
        group = svg[svg.index(f'id="speed0-at-{record.id}"') :]
        return re.search(r'style="fill: ([^;"]+)', group)[1]

    assert fill(records[3]) == "var(--surface)"
    assert fill(records[7]) not in ("var(--surface)", "none")


def test_methods_differ_in_shape_not_only_in_colour(build):
    svg = section(build.given(build.quickstart()))[0].svg
    shapes = {
        re.sub(r"\s+", " ", path) for path in re.findall(r'<path id="speed0-m\w+" d="([^"]+)"', svg)
    }
    assert len(shapes) >= 5  # dense, random, magnitude, wanda, shortgpt


def test_without_dense_perplexity_is_drawn_against_time(build):
    speed, size = section(build.given(build.quickstart()[1:]))
    assert "Inter-token latency, ms" in speed.svg
    assert "Size on disk, MB" in size.svg


def test_tooltips_name_the_cell_and_its_numbers(build):
    svg = section(build.given(build.quickstart()))[2].svg
    assert "<title>wanda sparsity=0.5: Size on disk, MB 538, Perplexity (log) 52.3</title>" in svg


def test_names_that_look_like_formulas_or_markup_stay_text(build):
    strange = build.record(build.cell("$\\frac{<b>", ratio=0.1), 40.0, 1.2)
    svg = section(build.given([build.quickstart()[0], strange]))[0].svg
    assert "$\\frac{&lt;b&gt; 0.1</text>" in svg


def test_a_recovery_is_named_without_its_options(build):
    dense, *_ = build.quickstart()
    plain = build.cell("shortgpt", ratio=0.1)
    data = plain.calibration
    lora = RecoveryRef(
        name="lora", distribution="prunebench", version="0.1.0", given={"rank": 8}, data=data
    )
    repaired = build.record(plain.model_copy(update={"recovery": lora}), 40.0, 1.1)
    svg = section(build.given([dense, repaired]))[0].svg
    assert ">shortgpt 0.1 + lora</text>" in svg
    assert "<title>shortgpt ratio=0.1 + lora rank=8:" in svg


def test_figures_say_in_words_what_they_show_and_link_to_rows(build):
    records = build.quickstart()
    speed, memory, size = section(build.given(records))
    assert "Not dominated: dense, shortgpt ratio=0.1, shortgpt ratio=0.25." in speed.desc
    for record in records[1:]:
        assert f'href="#row-{record.id}"' in speed.svg
    assert "Weights in memory, MB" in memory.desc
    assert "var(--ink)" in size.svg
    assert "#0101" not in size.svg
    assert len(speed.svg) < 60_000


def test_every_model_has_figures_of_its_own(build):
    drawn = section(build.given([*build.quickstart(), *build.quickstart("other")]))
    assert [one.caption for one in drawn] == [
        "Quality against speed, smollm2-135m-instruct",
        "Quality against memory, smollm2-135m-instruct",
        "Quality against size, smollm2-135m-instruct",
        "Quality against speed, other",
        "Quality against memory, other",
        "Quality against size, other",
    ]


def test_a_cell_timed_beside_others_is_grey_hollow_and_on_no_frontier(build):
    records = [*build.quickstart()[:1], build.record(build.cell("shortgpt", ratio=0.2), 24.0, 1.1)]
    contended = build.record(build.cell("shortgpt", ratio=0.1), 22.0, 1.5)
    load = CpuLoad(phase="latency", wall_s=9.0, others_share=0.4, steal_share=0.0)
    contended.contention = Contention(cpu=[load])
    speed = section(build.given([*records, contended]))[0]
    mark = re.search(rf'id="[^"]*at-{contended.id}".*?</g>', speed.svg, re.DOTALL)[0]
    assert "stroke: var(--muted)" in mark
    assert "fill: var(--surface)" in mark
    front = speed.desc.partition("Not dominated")[2]
    assert "ratio=0.2" in front
    assert "ratio=0.1" not in front
