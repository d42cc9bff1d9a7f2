"""The heat map of a card as geometry."""

from __future__ import annotations

from prunebench_report.figures.heatmap import heatmap


def test_the_heat_map_covers_each_remaining_layer_once(build):
    drawn = heatmap(build.audit(build.cell("shortgpt", ratio=0.25)))
    removed = {one["x"] for one in drawn["removed"]}
    assert len(removed) == 8
    assert len(drawn["rows"]) == 7
    for row in drawn["rows"]:
        covered = [
            layer for one in row["rects"] for layer in range(one["x"], one["x"] + one["width"])
        ]
        assert sorted(covered) == sorted(set(range(30)) - removed)


def test_equal_neighbours_become_one_rect_and_others_stay_apart(build):
    even = heatmap(build.audit(build.cell("wanda", sparsity=0.5)))
    assert [len(row["rects"]) for row in even["rows"]] == [1] * 7
    assert even["rows"][0]["rects"][0]["title"] == "layers 0 to 29, self_attn.q_proj: 50.0 %"
    uneven = heatmap(build.audit(build.cell("magnitude", sparsity=0.5)))
    assert min(len(row["rects"]) for row in uneven["rows"]) > 10


def test_the_heat_map_says_in_words_what_it_shows(build):
    drawn = heatmap(build.audit(build.cell("shortgpt", ratio=0.1)))
    assert "27 of 30 layers" in drawn["desc"]
    assert "Removed layers: 25, 26, 27." in drawn["desc"]


def test_a_model_without_prunable_linears_has_no_heat_map(build):
    audit = build.audit(build.cell("dense"))
    audit.linears = []
    assert heatmap(audit) is None
