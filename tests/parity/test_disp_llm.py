"""DISP-LLM's counts and logits under given masks against those of its released code."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from prunebench import Context, anatomy
from prunebench_plugins.disp_llm_budget import Budget, blocks_of
from prunebench_plugins.disp_llm_training import gated
from smollm2 import reference_file, reference_tokens, smollm2

pytestmark = pytest.mark.parity


def with_repeated_heads(model: Any) -> Any:
    """The same function with a key-value head for each query head, as the released code needs."""
    groups = model.config.num_attention_heads // model.config.num_key_value_heads
    for layer in model.model.layers:
        attention = layer.self_attn
        for linear in (attention.k_proj, attention.v_proj):
            heads = linear.weight.unflatten(0, (-1, attention.head_dim))
            repeated = heads.repeat_interleave(groups, dim=0).flatten(0, 1)
            linear.weight = torch.nn.Parameter(repeated, requires_grad=False)
            linear.out_features = len(repeated)
        attention.num_key_value_groups = 1
    model.config.num_key_value_heads = model.config.num_attention_heads
    return model


@torch.no_grad()
def test_given_masks() -> None:
    official = json.loads(reference_file("related/disp-llm.json").read_text())
    arrays = np.load(reference_file("related/disp-llm.npz"))
    bits = np.unpackbits(arrays["masks"])[: int(arrays["mask_lengths"].sum())]
    masks = torch.from_numpy(bits.astype(bool))
    tokens = reference_tokens("eval")[:1, :64]
    print()
    model = smollm2().model
    budget = Budget.of(anatomy(model))
    counted = official["kv3"]
    print(
        f"disp-llm: weights of grouped queries {budget.total:,}, true"
        f" {counted['decoder_linear_params_true']:,}, the released code counts"
        f" {counted['sum_ori_params_official']:,}"
    )
    assert budget.total == counted["decoder_linear_params_true"]
    model = with_repeated_heads(model)
    expected, official = model(tokens).logits, official["kv9"]
    budget = Budget.of(anatomy(model))
    assert budget.sizes == arrays["mask_lengths"].tolist()
    assert budget.total == official["sum_ori_params_official"]
    every = torch.ones(len(masks))
    with gated(model, every, budget.sizes):
        moved = float((model(tokens).logits - expected).abs().max())
    assert moved <= 1e-4
    assert [n for layer in budget.widths(masks) for n in layer] == official["mask_sums"]
    print(f"disp-llm: kept {budget.kept(masks):.9f}, official {official['kept_ratio_true']:.9f}")
    assert budget.kept(masks) == pytest.approx(official["kept_ratio_true"], abs=1e-9)
    assert float(budget.share(masks.float())) == pytest.approx(
        official["kept_ratio_official"], abs=1e-6
    )
    with gated(model, masks.float(), budget.sizes):
        masked = model(tokens).logits
    context = Context(tokens, 0, list(range(30)))
    reads, writes, inside = blocks_of(budget, masks)
    context.index_residual(model, reads, writes)
    context.keep_groups(model, inside)
    sliced = model(tokens).logits
    weights = sum(each.weight.numel() for each in context.linears(model).values())
    assert weights == official["sliced_linear_params"]
    difference = float((sliced - masked).abs().max())
    print(
        f"disp-llm: masked and sliced logits differ by {difference:.1e}, official"
        f" {official['masked_vs_sliced_max_abs']:.1e}"
    )
    assert difference <= 1e-4
    assert torch.equal(sliced[0].argmax(-1), torch.from_numpy(arrays["logits_argmax"]))
    last = torch.from_numpy(arrays["logits_last_token"].astype(np.float32))
    away = float((sliced[0, -1] - last).abs().max())
    print(f"disp-llm: logits of the last token differ by {away:.1e} from float16's official ones")
    assert away <= 2e-2
    nll = torch.nn.functional.cross_entropy(sliced[0, :-1], tokens[0, 1:])
    print(f"disp-llm: {float(nll):.6f} nats, official {official['mean_nll_sliced']:.6f}")
    assert float(nll) == pytest.approx(official["mean_nll_sliced"], abs=1e-4)
