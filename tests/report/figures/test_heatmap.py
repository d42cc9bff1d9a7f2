"""The heat map of a card as geometry."""

from __future__ import annotations

from collections import Counter

from prunebench_report.figures.heatmap import heatmap
from prunebench_report.text import percent


def squares(drawn):
    """How often each (layer, row) is covered, and the opacity there."""
    covered, shades = Counter(), {}
    for block in drawn["blocks"]:
        for one in block["rects"]:
            for layer in range(block["x"], block["x"] + block["width"]):
                for row in range(block["y"] + one["y"], block["y"] + one["y"] + one["height"]):
                    covered[layer, row] += 1
                    shades[layer, row] = float(one["shade"])
    return covered, shades


def test_the_heat_map_covers_each_remaining_layer_once(build):
    drawn = heatmap(build.audit(build.cell("shortgpt", ratio=0.25)))
    removed = {one["x"] for one in drawn["removed"]}
    assert len(removed) == 8
    assert len(drawn["rows"]) == 7
    kept = set(range(30)) - removed
    covered, _ = squares(drawn)
    assert covered == {(layer, row): 1 for layer in kept for row in range(7)}


def test_every_square_has_the_shade_of_its_linear_and_a_tooltip_that_names_it(build):
    audit = build.audit(build.cell("magnitude", sparsity=0.5))
    drawn = heatmap(audit)
    names = [row["name"] for row in drawn["rows"]]
    covered, shades = squares(drawn)
    assert set(covered.values()) == {1}
    titles = [
        (range(block["x"], block["x"] + block["width"]), block["title"])
        for block in drawn["blocks"]
    ]
    assert len(audit.linears) == len(covered) == 210
    for one in audit.linears:
        share = one.zeros / (one.rows * one.columns)
        assert abs(shades[one.layer, names.index(one.name)] - share) < 0.006
        module, _, short = one.name.rpartition(".")
        [title] = [
            title for layers, title in titles if one.layer in layers and f", {module}: " in title
        ]
        assert title.startswith(f"layer {one.layer}, ")
        assert f"{short} {percent(share)}" in title.partition(": ")[2].split(", ")


def test_equal_neighbours_become_one_rect_and_others_stay_apart(build):
    even = heatmap(build.audit(build.cell("wanda", sparsity=0.5)))
    assert [len(block["rects"]) for block in even["blocks"]] == [1, 1]
    assert [block["title"] for block in even["blocks"]] == [
        "layers 0 to 29, self_attn: q_proj 50.0 %, k_proj 50.0 %, v_proj 50.0 %, o_proj 50.0 %",
        "layers 0 to 29, mlp: gate_proj 50.0 %, up_proj 50.0 %, down_proj 50.0 %",
    ]
    uneven = heatmap(build.audit(build.cell("magnitude", sparsity=0.5)))
    assert sum(len(block["rects"]) for block in uneven["blocks"]) > 7 * 10


def test_a_layer_without_one_of_its_linears_leaves_that_square_empty(build):
    audit = build.audit(build.cell("wanda", sparsity=0.5))
    audit.linears = [
        one for one in audit.linears if (one.layer, one.name) != (3, "self_attn.k_proj")
    ]
    drawn = heatmap(audit)
    row = [row["name"] for row in drawn["rows"]].index("self_attn.k_proj")
    covered, _ = squares(drawn)
    assert set(covered) == {(x, y) for x in range(30) for y in range(7)} - {(3, row)}
    [title] = [
        block["title"] for block in drawn["blocks"] if block["title"].startswith("layer 3, ")
    ]
    assert title == "layer 3, self_attn: q_proj 50.0 %, v_proj 50.0 %, o_proj 50.0 %"


def test_the_heat_map_says_in_words_what_it_shows(build):
    drawn = heatmap(build.audit(build.cell("shortgpt", ratio=0.1)))
    assert "27 of 30 layers" in drawn["desc"]
    assert "Removed layers: 25, 26, 27." in drawn["desc"]


def test_a_model_without_prunable_linears_has_no_heat_map(build):
    audit = build.audit(build.cell("dense"))
    audit.linears = []
    assert heatmap(audit) is None
