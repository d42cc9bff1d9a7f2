"""FLAP's scores, kept groups and biases against those of its released code."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from prunebench import Block, Context, anatomy
from prunebench.plugin.host import load_plugins
from prunebench_plugins import flap
from smollm2 import reference_file, reference_tokens

pytestmark = pytest.mark.parity


def mha_model():
    """The small random Llama of the official run: heads of 128 channels, no grouped queries."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256,
        head_dim=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=49152,
        initializer_range=0.08,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).float().eval().requires_grad_(requires_grad=False)


def pruned(mode: str, monkeypatch: pytest.MonkeyPatch, **options: object):
    """The pruned model, its context, and the metric of each block's channels."""
    metrics: list[torch.Tensor] = []
    group_scores = flap.group_scores

    def recording(metric, groups, *, standardised):
        metrics.append(metric)
        return group_scores(metric, groups, standardised=standardised)

    monkeypatch.setattr(flap, "group_scores", recording)
    cls = load_plugins()["method"]["flap"].value
    model = mha_model()
    tokens = reference_tokens("calib")[:16].reshape(64, 128)
    context = Context(tokens, 0, list(range(4)))
    with torch.no_grad():
        cls(cls.Options.model_validate({"ratio": 0.2, "mode": mode, **options})).prune(
            model, context
        )
    return model, context, metrics


@pytest.mark.parametrize("mode", ["reference", "clean"])
def test_scores_groups_and_biases_agree(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of `mode: reference`; of the exact variance, the groups up to near ties."""
    official = np.load(reference_file("related/flap.npz"))
    run = json.loads(reference_file("related/flap.json").read_text())["runs"]["mha4"]
    model, context, metrics = pruned(mode, monkeypatch)
    parts = anatomy(model)
    score_error = bias_error = differing = 0.0
    kept = {block: set(some) for block, some in context.dense_indices.groups.items()}
    for index, layer in enumerate(parts.layers):
        # The release stores the metric of attentions before it is squared.
        scores = {"o": metrics[2 * index].sqrt(), "down": metrics[2 * index + 1]}
        for name, mine in scores.items():
            theirs = torch.from_numpy(official[f"mha4.{index}.wifv_{name}"])
            score_error = max(score_error, float(((mine - theirs) / theirs).abs().max()))
        assert parts.groups(layer, "attention") == len(run["heads_kept"][index])
        stays = np.unpackbits(official[f"mha4.{index}.mlp_keep"])[:512].nonzero()[0].tolist()
        differing += len(kept[Block(index, "mlp")] ^ set(stays)) / 512 / 4
        assert layer.self_attn.o_proj.bias is None  # all heads stay
        assert not official[f"mha4.{index}.bias_o"].any()
        bias = torch.from_numpy(official[f"mha4.{index}.bias_down"])
        bias_error = max(bias_error, float((layer.mlp.down_proj.bias.detach() - bias).abs().max()))
    left = sum(
        linear.weight.numel() for each in parts.layers for linear in parts.linears(each).values()
    )
    print(
        f"\nflap {mode}: scores differ by {score_error:.1e}, kept channels by {differing:.2%},"
        f" biases by {bias_error:.1e}; {left:,} weights, official {run['linear_params_after']:,}"
    )
    if mode == "reference":
        assert score_error < 1e-4
        assert differing == 0
        assert bias_error < 1e-4
        assert left == run["linear_params_after"]
    assert differing < 0.03
    assert left == pytest.approx(run["linear_params_after"], rel=0.001)
