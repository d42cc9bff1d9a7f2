"""HyWIA's scores and kept groups against those of its released code, on fixed tokens."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from prunebench import Context
from prunebench.plugin.host import load_plugins
from smollm2 import reference_file, reference_tokens, smollm2

pytestmark = [pytest.mark.parity, pytest.mark.timeout(900)]


class Watching(Context):
    """Records what is to stay, and leaves the model whole for the next setting."""

    def keep_groups(self, model, kept) -> None:
        self.kept = kept


def asked(model, monkeypatch: pytest.MonkeyPatch, **options: object):
    """The scores of all attentions and MLPs, and what is to stay of each."""
    cls = load_plugins()["method"]["hywia"].value
    scores: dict[object, torch.Tensor] = {}
    original = cls._scores

    def recording(self, model, pools, context, step):
        found = original(self, model, pools, context, step)
        scores.update({pool.block: score for pool, score in zip(pools, found, strict=True)})
        return found

    with monkeypatch.context() as patch:
        patch.setattr(cls, "_scores", recording)
        context = Watching(reference_tokens("calib")[:10, :64], 42, list(range(30)))
        method = cls(
            cls.Options.model_validate(
                {"ratio": 0.334, "protect_first": 4, "protect_last": 2, "mode": "reference"}
                | options
            )
        )
        with torch.no_grad():
            method.prune(model, context)
    return scores, context.kept


def test_coarse_and_fine_are_those_of_the_released_code(monkeypatch: pytest.MonkeyPatch) -> None:
    official = np.load(reference_file("related/hywia.npz"))
    results = json.loads(reference_file("related/hywia.json").read_text())["results"]
    model = smollm2().model
    groups = {}
    for fusion, taylor in (("coarse", "vectorize"), ("fine", "param_first")):
        scores, kept = asked(model, monkeypatch, fusion=fusion)
        error, wrong_groups, wrong_channels, channels = 0.0, 0, 0, 0
        for block, stays in kept.items():
            name = f"{block.layer}.{'attn' if block.kind == 'attention' else 'mlp'}"
            if (key := f"{taylor}.{name}.score") in official.files and block.layer in {4, 14, 27}:
                theirs = torch.from_numpy(official[key]).double()
                error = max(error, float(((scores[block] - theirs) / theirs).abs().max()))
            expected = set(official[f"{taylor}.{name}.kept"].tolist())
            differing = len(set(stays) ^ expected)
            assert len(stays) == len(expected)
            if block.kind == "attention":
                assert expected == set(results[taylor]["kv_groups_kept"][name])
                wrong_groups += differing
            else:
                wrong_channels, channels = wrong_channels + differing, channels + len(expected)
        groups[fusion] = {
            block: stays for block, stays in kept.items() if block.kind == "attention"
        }
        print(
            f"\nhywia {fusion}: scores differ by {error:.1e}, KV groups by {wrong_groups} of"
            f" {2 * len(groups[fusion])}, MLP channels by {wrong_channels} of {channels:,}"
        )
        assert error < 2e-3
        assert wrong_groups == 0
        assert wrong_channels <= 0.001 * channels
    scores, kept = asked(model, monkeypatch, fusion="random-gate")
    same = sum(kept[block] == stays for block, stays in groups["fine"].items())
    print(f"hywia random-gate, seed 42: the KV groups of fine in {same} of 24 layers")
    assert same == len(groups["fine"])  # as in the official run
