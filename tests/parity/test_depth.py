"""Shortened LLaMA, SLEB and LaCo: orders, losses, cosines and merges of the official code."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from prunebench import Context
from prunebench.plugin.host import load_plugins
from prunebench_plugins.laco_merges import Merger, Space
from smollm2 import reference_file, reference_tokens, smollm2

pytestmark = pytest.mark.parity


def official(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(reference_file(f"related/{name}.json").read_text())
    return found


@pytest.fixture(scope="module")
def model() -> Any:
    return smollm2().model


def notes_of(model: Any, tokens: torch.Tensor, name: str, **options: Any) -> dict[str, Any]:
    """What the method notes; the model stays as it is."""
    context = Context(tokens, 0, list(range(30)))
    context.remove_layers = lambda *_: None
    kind = load_plugins()["method"][name].value
    with torch.no_grad():
        kind(kind.Options.model_validate(options)).prune(model, context)
    return context.notes


def row(agreement: Any, *texts: str) -> None:
    agreement(texts + ("",) * (9 - len(texts)))


def test_shortened_llama_ranks_by_perplexity_as_the_official_code(model, agreement) -> None:
    expected = official("shortened-llama")["ppl"]
    tokens = reference_tokens("calib")[: expected["windows"], :128]
    notes = notes_of(model, tokens, "shortened-llama", count=6, whole_order=True)
    worst = max(
        abs(mine / other - 1)
        for mine, other in zip(notes["score"], expected["ppl_per_removed_layer"], strict=True)
    )
    row(
        agreement,
        "shortened-llama, ppl, 4 x 128 tokens",
        "anal_block_sensitivity_ppl.py",
        f"perplexities differ by at most {worst:.1e} (<= 1e-4)",
        f"order of 30 layers {'the same' if notes['order'] == expected['order'] else 'differs'}",
    )
    assert worst <= 1e-4
    assert notes["order"] == expected["order"]
    assert notes["removed_in_order"] == expected["order_plus"][:6]


@pytest.mark.parametrize("mode", ["clean", "reference"])
def test_sleb_removes_the_layers_of_the_official_code(mode: str, model, agreement) -> None:
    expected = official("sleb")
    tokens = reference_tokens("calib")[:1, :32]
    notes = notes_of(model, tokens, "sleb", count=6, mode=mode)
    texts = [f"sleb, 6 layers, mode {mode}", "sleb.py", f"removed {notes['removed_in_order']}"]
    if mode == "reference":
        # The released loss is the mean of a window times its 32 tokens.
        worst = max(
            abs(32 * mine / other - 1)
            for step, its in zip(notes["losses_per_step"], expected["losses_per_step"], strict=True)
            for mine, other in zip(step, its, strict=True)
        )
        texts.append(f"losses differ by at most {worst:.1e} (<= 1e-4)")
        assert worst <= 1e-4
    row(agreement, *texts)
    assert notes["removed_in_order"] == expected["order"]


# The stored run, and two of which the file notes the merges.
MERGES = {
    0.7: [[26, 2], [24, 2], [17, 2], [13, 2]],
    0.75: [[26, 2], [22, 2], [18, 2]],
    0.65: [[26, 2], [24, 2], [22, 2], [17, 2], [13, 2], [12, 2]],
}


def test_laco_tries_and_merges_as_the_notebook(model, agreement) -> None:
    expected = official("laco")["runs"]["C3"]
    tokens = torch.tensor(official("laco")["sentence_token_ids_after_retokenising"])
    assert expected["T"] == 0.7
    assert expected["accepted_merges_lay_and_m"] == MERGES[0.7]
    with torch.no_grad():
        merger = Merger(model, Context(tokens, 0, list(range(30))), "code", lambda _: None)
        for threshold, merges in MERGES.items():
            walk = merger.walk(threshold, Space(3, 1, 0, 29))
            texts = [
                f"laco, C=3, T={threshold}",
                "laco_llama-13b.ipynb",
                f"merges {[[one.lay, one.number] for one in walk.accepted]}",
            ]
            if threshold == expected["T"]:
                tried = [(one.lay, one.layers_before, one.accepted) for one in walk.trials]
                theirs = expected["trials"]
                assert tried == [
                    (one["lay"], one["layers_before"], one["accepted"]) for one in theirs
                ]
                worst = max(
                    abs(mine.cosine - other["cosine"])
                    for mine, other in zip(walk.trials, theirs, strict=True)
                )
                texts.append(f"cosines of {len(tried)} trials within {worst:.1e} (<= 1e-4)")
                assert worst <= 1e-4
            row(agreement, *texts)
            assert [[one.lay, one.number] for one in walk.accepted] == merges
