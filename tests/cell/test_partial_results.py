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
