"""Two runs against each other."""

from __future__ import annotations

import pytest

from prunebench_report import compare
from prunebench_report.data.load_runs import load_runs
from prunebench_report.sections.comparison import SAME, before_and_after


def cell(found, name, head):
    row = next(row for row in found["rows"] if row["name"] == name)
    return row["cells"][found["heads"].index(head)]


def test_a_run_against_itself_has_no_significant_change(build, tmp_path):
    folder = build.store(tmp_path / "a", build.quickstart()).folder
    found = compare(folder, folder)
    assert len(found["rows"]) == 8
    assert found["differs"] == []
    assert found["summary"].startswith("No significant change in 8 cells")
    assert not any(one["significant"] for row in found["rows"] for one in row["cells"])


def test_significant_changes_are_distinguished_from_noise(build, tmp_path):
    a = build.store(tmp_path / "a", build.quickstart()).folder
    changed = build.quickstart()
    changed[3] = build.record(changed[3].cell, 52.32, 1.002)  # within the errors
    changed[6] = build.record(changed[6].cell, 38.0, 1.3)  # beyond them
    b = build.store(tmp_path / "b", changed).folder
    found = compare(a, b)
    assert cell(found, "wanda sparsity=0.5", "Perplexity")["note"] == SAME
    assert cell(found, "wanda sparsity=0.5", "Speed-up")["significant"] is False
    better = cell(found, "shortgpt ratio=0.1", "Speed-up")
    assert (better["significant"], better["tone"]) == (True, "better")
    assert better["values"] == "1.11\N{MULTIPLICATION SIGN} to 1.30\N{MULTIPLICATION SIGN}"
    assert cell(found, "shortgpt ratio=0.1", "Perplexity")["tone"] == "better"
    assert cell(found, "shortgpt ratio=0.1", "Inter-token latency")["significant"] is None


def test_cells_pair_apart_from_what_differs_between_the_runs(build, tmp_path):
    a = build.quickstart()
    b = [
        record.model_copy(update={"cell": record.cell.model_copy(update={"device": "cuda:0"})})
        for record in build.quickstart()
    ]
    b = [record.model_copy(update={"id": record.cell.id}) for record in b]
    found = compare(
        build.store(tmp_path / "a", a).folder, build.store(tmp_path / "b", b[:-1]).folder
    )
    assert found["differs"] == [("device", "cpu", "cuda:0")]
    assert len(found["rows"]) == 7
    assert found["only_a"] == ["shortgpt ratio=0.25"]
    assert found["only_b"] == []


def test_the_file_is_one_document_with_our_script_alone(build, tmp_path):
    strange = build.record(build.cell("</td><script>", ratio=0.1), 40.0, 1.2)
    folder = build.store(tmp_path / "a", [build.quickstart()[0], strange]).folder
    compare(folder, folder, tmp_path / "c.html")
    text = (tmp_path / "c.html").read_text(encoding="utf-8")
    assert text.count("<script") == 1
    assert "&lt;script&gt;" in text
    assert "no significant change" in text


def test_one_cell_against_another_names_what_differs(build, tmp_path):
    a = build.store(tmp_path / "a", build.quickstart()[3:4]).folder
    b = build.store(tmp_path / "b", build.quickstart()[6:7]).folder
    found = compare(a, b)
    assert ("method.name", "wanda", "shortgpt") in found["differs"]
    assert len(found["rows"]) == 1


def test_runs_without_common_cells_say_so(build, tmp_path):
    a = build.store(tmp_path / "a", build.quickstart()[3:6]).folder
    b = build.store(tmp_path / "b", build.quickstart()[6:8]).folder
    found = compare(a, b)
    assert found["summary"] == "No cell has a result in both runs."
    assert len(found["only_a"]) == 3
    assert len(found["only_b"]) == 2


@pytest.mark.parametrize("missing", ["quality", "speed", "audit", "cost"])
def test_missing_parts_are_not_available(build, tmp_path, missing):
    a = build.store(tmp_path / "a", build.quickstart()).folder
    records = build.quickstart()
    for record in records:
        setattr(record, missing, None)
    found = compare(a, build.store(tmp_path / "b", records).folder)
    assert len(found["rows"]) == 8


def test_the_page_says_what_ran_when_and_where_and_can_be_navigated(build, tmp_path):
    a = build.store(tmp_path / "a", build.quickstart()).folder
    changed = build.quickstart()
    for record in changed:
        record.provenance["cpu"] = "another processor"
    b = build.store(tmp_path / "b", changed, missing=[build.cell("owl", sparsity=0.6)]).folder
    found = compare(a, b, tmp_path / "c.html")
    assert found["sides"]["A"]["when"] == "2026-11-02 10:33 to 10:33 UTC"
    assert found["sides"]["B"]["machines"] == ["another processor · 2 cores · 16.8 GB memory"]
    text = (tmp_path / "c.html").read_text(encoding="utf-8")
    for shown in ("2026-11-02 10:33", "another processor", 'id="theme"', "<nav "):
        assert shown in text
    for target in ("changes", "before-after", "table", "unpaired"):
        assert f'href="#{target}"' in text
        assert f'<section id="{target}"' in text


def test_the_plots_show_both_runs_by_cell(build, tmp_path):
    a = build.store(tmp_path / "a", build.quickstart())
    changed = build.quickstart()
    changed[6] = build.record(changed[6].cell, 38.0, 1.3)
    b = build.store(tmp_path / "b", changed)
    quality, speed = before_and_after(load_runs([a]), load_runs([b]))
    assert "shortgpt 0.1 60.1 to 65.9" in quality.desc
    assert "shortgpt 0.1 1.11 to 1.30" in speed.desc
    assert "dense" not in quality.desc
    # A mark in A, one in B and a line between them for each of seven cells
    assert quality.svg.count("<use") == 14
    assert quality.svg.count('class="range') == 7


def test_without_dense_the_plot_shows_perplexities(build, tmp_path):
    a = build.store(tmp_path / "a", build.quickstart()[1:])
    for_a = load_runs([a])
    for row in for_a.table:
        row["inter_token_speedup"] = None
    (plot,) = before_and_after(for_a, for_a)
    assert plot.caption == "Perplexity before and after"


def test_many_cells_are_drawn_in_part_and_the_plot_says_so(build, tmp_path):
    records = [build.quickstart()[0]]
    records += [
        build.record(build.cell("wanda", sparsity=round(0.01 * n, 2)), 30.0 + n, 1.0)
        for n in range(1, 41)
    ]
    given = load_runs([build.store(tmp_path / "a", records)])
    assert before_and_after(given, given)[0].notes == ("10 more cells are in the table.",)


def test_perplexities_are_compared_window_by_window(build, tmp_path):
    """52.3 to 53.0 is within the error of each alone, but every window says the same."""

    def runs(name, *, windows):
        for label, value in (("a", 52.31), ("b", 53.0)):
            record = build.record(build.cell("wanda", sparsity=0.5), value, 1.0)
            if not windows:
                record.quality.perplexity[0].window_nll = None
            yield build.store(tmp_path / f"{name}-{label}", [record]).folder

    paired = cell(compare(*runs("paired", windows=True)), "wanda sparsity=0.5", "Perplexity")
    assert (paired["significant"], paired["tone"]) == (True, "worse")
    apart = cell(compare(*runs("apart", windows=False)), "wanda sparsity=0.5", "Perplexity")
    assert apart["significant"] is False
