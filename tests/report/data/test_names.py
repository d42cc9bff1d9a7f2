"""Names of cells: as short as the run allows, and never twice the same."""

from __future__ import annotations

from prunebench_report.data.names import calibration_names, unique_names


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


def test_calibrations_are_named_if_labels_repeat_and_before_the_seed(build):
    def cell(corpus, seed):
        one = build.cell("wanda", seed=seed, sparsity=0.5)
        ref = one.calibration.corpus.model_copy(update={"name": corpus})
        return one.model_copy(
            update={"calibration": one.calibration.model_copy(update={"corpus": ref})}
        )

    names = unique_names([cell("c4", 0), cell("c4", 1), cell("alpaca", 0), build.cell("dense")])
    assert list(names.values()) == [
        "wanda sparsity=0.5 · c4 · seed 0",
        "wanda sparsity=0.5 · c4 · seed 1",
        "wanda sparsity=0.5 · alpaca",
        "dense",
    ]


def test_what_differs_beside_the_corpus_is_named_only_if_it_must_be(build):
    one = build.cell("wanda").calibration
    corpus = one.corpus.model_copy(update={"name": "c4", "revision": "1588ec454efa"})
    assert calibration_names([one, one.model_copy(update={"corpus": corpus})]) == [
        "boolq-passages",
        "c4",
    ]
    other = corpus.model_copy(update={"revision": "77"})
    assert calibration_names(
        [one.model_copy(update={"corpus": ref}) for ref in (corpus, other)]
    ) == ["1588ec45", "77"]
    assert calibration_names([one, one.model_copy(update={"split": "all", "length": 64})]) == [
        "train, 512 tokens",
        "all, 64 tokens",
    ]
    assert calibration_names([one, one, None]) == ["", "", "no calibration"]
