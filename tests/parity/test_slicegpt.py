"""SliceGPT's eigenvalues, shapes and perplexity against those of its released code."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from evaluation import SPEC, windows_of
from prunebench import Context
from prunebench.measure.quality.perplexity import perplexity
from prunebench.model.checkpoint import parameter_count
from prunebench_plugins import slicegpt
from smollm2 import reference_file, reference_tokens, smollm2

pytestmark = pytest.mark.parity


def test_the_released_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    official = json.loads(reference_file("related/slicegpt.json").read_text())
    arrays = np.load(reference_file("related/slicegpt.npz"))
    model = smollm2().model
    found: list[np.ndarray] = []
    own = slicegpt.principal

    def watched(gram: torch.Tensor):
        values, vectors = own(gram)
        found.append(values.numpy())
        return values, vectors

    monkeypatch.setattr(slicegpt, "principal", watched)
    context = Context(reference_tokens("calib")[:2], 0, list(range(30)))
    options = slicegpt.SliceGPT.Options(ratio=0.25, round_interval=8, mode="reference")
    with torch.no_grad():
        slicegpt.SliceGPT(options).prune(model, context)
    print()
    for name in arrays.files:
        place = int(name.partition(".")[2])
        difference = float(np.abs(found[place] / arrays[name] - 1).max())
        print(
            f"slicegpt: eigenvalues at place {place}: largest relative difference {difference:.1e}"
        )
        assert difference <= (1e-6 if place == 0 else 0.01)
    shapes = {name: list(each.shape) for name, each in model.named_parameters()}
    for name, shape in official["shapes_layer14"].items():
        assert shapes[f"model.layers.14.{name}.weight"] == shape
    assert shapes["model.layers.29.mlp_rotation"] == official["mlp_shortcut_Q_last"]
    parameters = parameter_count(model)
    print(f"slicegpt: parameters {parameters:,}, official {official['params_after']:,}")
    assert parameters == official["params_after"]
    result = perplexity(model, windows_of(reference_tokens("eval")[:2]), SPEC)
    expected = official["ppl_after_eval2"]
    print(f"slicegpt: perplexity {result.perplexity:.4f}, official {expected:.4f}")
    assert result.perplexity == pytest.approx(expected, rel=0.01)


def test_identity_at_zero_per_cent() -> None:
    """The released code moves the logits by 2.05, because it subtracts the embeddings' means."""
    model = smollm2().model
    tokens = reference_tokens("eval")[:1, :256]
    dense = model(tokens).logits
    context = Context(reference_tokens("calib")[:1], 0, list(range(30)))
    with torch.no_grad():
        slicegpt.SliceGPT(slicegpt.SliceGPT.Options(ratio=0)).prune(model, context)
    difference = float((model(tokens).logits - dense).abs().max())
    print(f"\nslicegpt at 0 %: logits move by {difference:.1e}, of {float(dense.abs().max()):.0f}")
    assert difference <= 1e-2
