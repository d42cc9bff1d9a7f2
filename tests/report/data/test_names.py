"""Names of cells: as short as the run allows, and never twice the same."""

from __future__ import annotations

from prunebench_report.data.names import unique_names


def test_seeds_are_named_only_if_labels_repeat(build):
    cells = [build.cell("wanda", seed=seed, sparsity=0.5) for seed in (0, 1)]
    assert list(unique_names([*cells, build.cell("dense")]).values()) == [
        "wanda sparsity=0.5 · seed 0",
        "wanda sparsity=0.5 · seed 1",
        "dense",
    ]


def test_models_are_named_if_there_are_several(build):
    two = unique_names([build.cell("dense"), build.cell("dense", "other-model")])
    assert list(two.values()) == ["dense · smollm2-135m-instruct", "dense · other-model"]


def test_cells_that_differ_in_nothing_else_are_named_by_their_ids(build):
    long = build.cell("dense")
    window = long.perplexity[0].model_copy(update={"length": 128})
    short = long.model_copy(update={"perplexity": (window,)})
    names = unique_names([long, short])
    assert names == {cell.id: f"dense · {cell.id[:6]}" for cell in (long, short)}
