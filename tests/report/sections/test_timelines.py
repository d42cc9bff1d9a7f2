"""Memory over time, cell beside cell: which cells are drawn, and on which axes."""

from __future__ import annotations

import re

import svg_paths
from prunebench_report import render
from prunebench_report.sections.timelines import MOST, section
from prunebench_report.text import size


def many(build, count):
    methods = ("magnitude", "wanda", "random")
    cells = [
        build.cell(methods[number * 3 // count], sparsity=number / 100) for number in range(count)
    ]
    return [
        build.record(build.cell("dense"), 25.0, 1.0),
        *(build.record(cell, 30.0, 1.0) for cell in cells),
    ]


def test_a_small_run_has_a_picture_per_cell_dense_first_with_its_peak(build):
    records = build.quickstart()
    found = section(build.given([*records[1:], records[0]]))
    assert [one["name"] for one in found["pictures"]] == [record.cell.label for record in records]
    assert found["left_out"] == 0
    assert all(
        re.fullmatch(r"peak 1\.7\d GB in perplexity", one["peak"]) for one in found["pictures"]
    )


def test_the_peak_is_that_of_the_table_and_not_of_the_dense_twin(build):
    records = build.quickstart()
    line = records[1].samples.memory
    latency = next(span for span in line.phases if span.phase == "latency")
    beside = [
        value + (10**10 if time >= latency.start_s else 0)
        for time, value in zip(line.time_s, line.rss_bytes, strict=True)
    ]
    records[1].samples.memory = line.model_copy(update={"rss_bytes": beside})
    inputs = build.given(records)
    found = section(inputs)
    shown = size(inputs.row_by_id[records[1].id]["peak_rss_bytes"])
    assert found["pictures"][1]["peak"].startswith(f"peak {shown}")
    assert found["pictures"][1]["svg"].count('class="hatched"') == 1
    assert [one["name"] for one in found["phases"] if one["hatched"]] == ["latency"]


def test_every_phase_has_one_colour_in_all_pictures(build):
    records = build.quickstart()
    # One cell skips a phase: the others of that cell keep their colours.
    line = records[1].samples.memory
    records[1].samples.memory = line.model_copy(update={"phases": line.phases[2:]})
    found = section(build.given(records))
    for one in found["pictures"]:
        for kind, name in re.findall(r'<svg class="phase (c\d)"[^>]*><title>(\w+): ', one["svg"]):
            assert kind == next(p["kind"] for p in found["phases"] if p["name"] == name)
    assert len({one["kind"] for one in found["phases"]}) == len(found["phases"]) == 6


def test_all_are_on_the_same_axes(build):
    records = build.quickstart()
    small, large = records[1].samples.memory, records[2].samples.memory
    records[1].samples.memory = small.model_copy(
        update={"rss_bytes": [value // 4 for value in small.rss_bytes]}
    )
    later = [*large.time_s[:-1], 2 * large.phases[-1].end_s]
    records[2].samples.memory = large.model_copy(update={"time_s": later})
    drawn = [one["svg"] for one in section(build.given(records))["pictures"]]
    ticks = {str(re.findall(r"<text[^>]*>([^<]+)", one)) for one in drawn}
    assert len(ticks) == 1
    assert "'20', '40'" in ticks.pop()
    paths = [re.search(r'class="memory" d="([^"]+)"', one)[1] for one in drawn]
    heights = [90 - min(y for _, y in svg_paths.corners(path)) for path in paths]
    assert heights[0] > 3 * heights[1] > 0
    widths = [max(x for x, _ in svg_paths.corners(path)) for path in paths]
    assert widths[2] == 640 > 2 * widths[0] - 20


def test_of_many_some_of_every_method_are_drawn_and_the_rest_is_in_the_cards(build, tmp_path):
    records = many(build, 45)
    found = section(build.given(records))
    methods = [one["name"].split()[0] for one in found["pictures"]]
    assert len(methods) == MOST == 12
    assert {method: methods.count(method) for method in methods} == {
        "dense": 1,
        "magnitude": 4,
        "wanda": 4,
        "random": 3,
    }
    page = render(build.store(tmp_path / "run", records))
    assert "12 of 46 cells, some of every method" in page
    assert (
        page.index('<section id="where"')
        < page.index('<section id="memory"')
        < page.index('<section id="costs"')
    )
    part = page[page.index('<section id="memory"') : page.index('<section id="costs"')]
    assert part.count("<figure") == 12
    assert max(map(len, part.split("<figure")[1:])) < 10_000
    assert all(f'id="{cell}"' in page for cell in re.findall(r'href="#(cell-\w+)"', part))


def test_runs_without_samples_have_no_section(build, tmp_path):
    records = build.quickstart()[:2]
    records[0].samples.memory = None
    records[1].samples.memory.time_s = records[1].samples.memory.time_s[:1]
    records.append(build.failed(build.cell("wanda", sparsity=0.5)))
    assert section(build.given(records)) is None
    assert 'href="#memory"' not in render(build.store(tmp_path / "run", records))


def test_hostile_phases_stay_text(build, tmp_path):
    record = build.quickstart()[0]
    record.samples.memory.phases[4].phase = "</title><script>alert(1)</script>"
    page = render(build.store(tmp_path / "run", [record]))
    assert "<script>alert" not in page
