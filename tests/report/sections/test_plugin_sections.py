"""Sections from plugins: data and text, whatever they hold."""

from __future__ import annotations

import prunebench
from prunebench.plugin.host import load_plugins
from prunebench_report import render
from prunebench_report.sections import plugin_sections

EVIL = '</script><img src=x onerror="alert(1)">'


class Good(prunebench.ReportSection):
    name = "good"
    title = EVIL

    def build(self, data):
        best = min(data.rows, key=lambda row: row["perplexity"])
        return [
            prunebench.Paragraph(f"{len(data.records)} records, the best is {best['name']} {EVIL}"),
            prunebench.Number("perplexity", best["perplexity"], "nats"),
            prunebench.Table(("a", EVIL), [(1, None), (float("nan"), EVIL)] * 150, caption="many"),
        ]


class Raising(Good):
    name = "raising"
    title = "Raising"

    def build(self, data):
        raise SystemExit(EVIL)


class Markup(Good):
    name = "markup"
    title = "Markup"

    def build(self, data):
        return ["<b>bold</b>"]


class Silent(Good):
    name = "silent"
    title = "Silent"

    def build(self, data):
        data.rows.clear()
        return []


def test_blocks_become_text(build, tmp_path):
    html = render(
        build.store(tmp_path / "run", build.quickstart()), sections=[Silent, Good, Raising, Markup]
    )
    assert "8 records, the best is dense" in html
    assert "<img" not in html
    assert html.count("<script") == 2
    assert "25.05" in html
    assert "100 more rows are not shown" in html
    assert "This section could not be built: SystemExit" in html
    assert "str is no block" in html
    assert "Silent" not in html


class Samples(Good):
    name = "samples"
    title = "Samples"

    def build(self, data):
        texts = prunebench.Texts(
            [(f"{n} {EVIL}", f"line\nline {EVIL}" + "y" * 2500) for n in range(8)]
        )
        return [
            prunebench.Folded(EVIL, [prunebench.Paragraph("before"), texts, *[texts] * 100]),
            prunebench.Texts([("open", "text")]),
        ]


class Nested(Good):
    name = "nested"
    title = "Nested"

    def build(self, data):
        return [prunebench.Folded("a", [prunebench.Folded("b", [])])]


def test_texts_are_side_by_side_folded_escaped_and_bounded(build, tmp_path):
    [one] = plugin_sections.section(build.given(build.quickstart()), [Samples])
    folded, texts = one["blocks"]
    assert (folded["kind"], folded["title"], len(folded["blocks"])) == ("folded", EVIL, 100)
    assert [len(folded["blocks"][1]["texts"]), len(texts["texts"])] == [6, 1]
    assert folded["blocks"][1]["texts"][0]["text"].startswith("line\nline </script>")
    assert "more characters]" in folded["blocks"][1]["texts"][0]["text"]
    html = render(build.store(tmp_path / "run", build.quickstart()), sections=[Samples])
    assert "<img" not in html
    assert '<details class="panel folded"><summary>&lt;/script' in html
    assert '<figcaption>open</figcaption><pre tabindex="0">text</pre>' in html


def test_a_fold_inside_a_fold_is_a_problem(build):
    [one] = plugin_sections.section(build.given(build.quickstart()), [Nested])
    assert (one["blocks"], one["problem"]) == (
        [],
        "TypeError: a Folded block is inside another one",
    )


def test_a_section_cannot_change_what_others_see(build):
    found = plugin_sections.section(build.given(build.quickstart()), [Silent, Good])
    assert [one["name"] for one in found] == ["good"]
    assert found[0]["problem"] is None


class Point:
    """An entry point of a plugin that registers ``value`` as a section."""

    name, dist = "somebody", None

    def __init__(self, value):
        self.value = value

    def load(self):
        import types

        module = types.ModuleType("somebody")
        module.prunebench_register_report_section = prunebench.hookimpl(lambda: self.value)
        return module


def test_plugins_register_sections_and_nonsense_is_a_problem():
    assert load_plugins([Point([Good, Silent])])["section"].keys() == {"good", "silent"}
    registry = load_plugins([Point(Good())])
    assert not registry["section"]
    assert "not a subclass of prunebench.ReportSection" in registry.problems[0].message
