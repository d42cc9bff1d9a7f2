"""Results of an interrupted cell are reused for the same weights only."""

from __future__ import annotations

from pathlib import Path

import torch

from prunebench import Adapter
from prunebench.cell.partial_results import PartialResults, fingerprint
from prunebench.record.memory import PhaseMemory
from tiny import tiny_model

RESULT = PhaseMemory(phase="load", peak_rss_bytes=1)


def test_results_are_reused_for_the_same_weights(tmp_path: Path) -> None:
    path = tmp_path / "x.partial.json"
    first = PartialResults(path)
    first.begin(tiny_model("llama"))
    assert first.get("perplexity 1", PhaseMemory) is None
    first.put("perplexity 1", [RESULT])
    again = PartialResults(path)
    again.begin(tiny_model("llama"))
    assert again.get("perplexity 1", PhaseMemory) == [RESULT]
    assert again.reused == ["perplexity 1"]


def test_results_of_other_weights_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "x.partial.json"
    model = tiny_model("llama")
    first = PartialResults(path)
    first.begin(model)
    first.put("perplexity 1", [RESULT])
    before = fingerprint(model)
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1e-3
    assert fingerprint(model) != before
    other = PartialResults(path)
    other.begin(model)
    assert other.get("perplexity 1", PhaseMemory) is None


def test_a_damaged_file_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "x.partial.json"
    path.write_text('{"weights": "x", "results": {"perplexity 1": 3')
    results = PartialResults(path)
    results.begin(tiny_model("llama"))
    assert results.get("perplexity 1", PhaseMemory) is None


def test_without_a_file_nothing_is_kept() -> None:
    results = PartialResults(None)
    results.begin(tiny_model("llama"))
    results.put("perplexity 1", [RESULT])
    assert results.get("perplexity 1", PhaseMemory) is None


def test_an_adapter_beside_the_weights_is_part_of_the_fingerprint() -> None:
    model = tiny_model("llama")
    found = [fingerprint(model)]
    for value in (1.0, 2.0):
        other = tiny_model("llama")
        path = "model.layers.0.mlp.up_proj"
        out, into = other.get_submodule(path).weight.shape
        pair = (value * torch.arange(2.0 * into).view(2, into), torch.ones(out, 2))
        Adapter({path: pair}, alpha=2.0).attach(other)
        found.append(fingerprint(other))
    assert len(set(found)) == 3


def test_what_was_measured_before_pruning_is_kept_whatever_the_weights_are(tmp_path: Path) -> None:
    path = tmp_path / "x.partial.json"
    first = PartialResults(path)
    assert first.remember("times", lambda: {"block": (0.1, 0.3)}) == {"block": [0.1, 0.3]}
    first.begin(tiny_model("llama"))
    first.put("perplexity 1", [RESULT])
    again = PartialResults(path)
    assert again.remember("times", lambda: 1 / 0) == {"block": [0.1, 0.3]}
    assert again.reused == ["times"]
    assert again.remember("others", lambda: 2) == 2
    again.begin(tiny_model("llama"))
    assert again.get("perplexity 1", PhaseMemory) == [RESULT]
    changed = tiny_model("llama", seed=1)
    third = PartialResults(path)
    third.begin(changed)
    assert third.get("perplexity 1", PhaseMemory) is None
    third.put("perplexity 2", [RESULT])
    assert PartialResults(path).remember("times", lambda: 1 / 0) == {"block": [0.1, 0.3]}
    assert PartialResults(path).remember("others", lambda: 1 / 0) == 2


def test_measurements_are_made_anew_without_a_file_or_if_it_is_damaged(tmp_path: Path) -> None:
    results = PartialResults(None)
    assert [results.remember("times", lambda n=n: n) for n in (1, 2)] == [1, 2]
    path = tmp_path / "x.partial.json"
    for text in ("[3", "[3]", '{"measured": 3}'):
        path.write_text(text)
        assert PartialResults(path).remember("times", lambda: 5) == 5
        assert PartialResults(path).remember("times", lambda: 6) == 5
