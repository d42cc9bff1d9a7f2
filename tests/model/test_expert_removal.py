"""Experts are removed with all that belongs to them: masked and sliced models agree."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from prunebench.errors import PrunebenchError
from prunebench.model import expert_removal
from prunebench.model.expert_removal import keep_experts
from prunebench.model.mixture import mixture_of
from prunebench.model.routers import masked_experts
from prunebench.testing.any_type import tiny_model

TOKENS = torch.randint(3, 150, (2, 10), generator=torch.Generator().manual_seed(0))
KINDS = {
    "softmax router": ("qwen3_moe", {}),
    "softmax router without renormalisation": ("qwen3_moe", {"norm_topk_prob": False}),
    "biased router and experts": ("gpt_oss", {}),
    "correction bias, groups": ("deepseek_v3", {"n_routed_experts": 8, "n_group": 2}),
    "no gate": ("nemotron_h", {}),
    "rows of the router for shared experts": ("inkling_text", {}),
    "a linear as router": ("llama4_text", {}),
    "thresholds instead of top k": ("phimoe", {}),
    "an MLP as router, with a class that skips": ("zaya", {}),
}


def model_of(kind: str) -> Any:
    family, overrides = KINDS[kind]
    model = tiny_model(family, **overrides)
    for name, buffer in model.named_buffers():
        # transformers loads zaya's without the values of the file.
        if "bias" in name and family != "zaya":
            torch.nn.init.normal_(buffer, 0.0, 0.05, generator=torch.Generator().manual_seed(1))
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_masked_and_sliced_models_agree_and_the_folder_reloads(kind: str, tmp_path: Any) -> None:
    model = model_of(kind)
    mixture = mixture_of(model)
    half = mixture.count // mixture.groups - 1
    generator = torch.Generator().manual_seed(2)
    kept = {
        path: sorted(
            group * (half + 1) + int(each)
            for group in range(mixture.groups)
            for each in torch.randperm(half + 1, generator=generator)[:half]
        )
        for path in mixture.experts
    }
    dense = model(TOKENS).logits
    with masked_experts(model, mixture, kept):
        masked = model(TOKENS).logits
    assert torch.equal(model(TOKENS).logits, dense), "the mask stays"
    keep_experts(model, kept)
    sliced = model(TOKENS).logits
    assert not torch.allclose(masked, dense, atol=1e-3)
    torch.testing.assert_close(sliced, masked, rtol=1e-4, atol=1e-5)

    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    assert torch.equal(loaded.eval()(TOKENS).logits, sliced)
    written = model.generate(TOKENS, max_new_tokens=4, do_sample=False)
    assert torch.equal(loaded.generate(TOKENS, max_new_tokens=4, do_sample=False), written)
    assert mixture_of(loaded).count == half * mixture.groups


@given(seed=st.integers(0, 1000), count=st.integers(2, 6))
@settings(max_examples=4, deadline=None)
def test_any_choice_of_experts_gives_the_masked_model(seed: int, count: int) -> None:
    model = tiny_model("qwen3_moe", seed, num_local_experts=6, num_hidden_layers=2)
    mixture = mixture_of(model)
    generator = torch.Generator().manual_seed(seed)
    kept = {
        path: sorted(torch.randperm(6, generator=generator)[:count].tolist())
        for path in mixture.experts
    }
    with masked_experts(model, mixture, kept):
        masked = model(TOKENS).logits
    keep_experts(model, kept)
    torch.testing.assert_close(model(TOKENS).logits, masked, rtol=1e-4, atol=1e-5)


def refused(model: Any, kept: Any, match: str) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(PrunebenchError, match=match):
        keep_experts(model, kept)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_what_cannot_be_removed_is_refused_and_the_model_stays() -> None:
    model = tiny_model("qwen3_moe")
    first, *others = paths = list(mixture_of(model).experts)
    refused(model, {key: [1] for key in paths}, "1 of 4 experts would be left.* at least 2")
    refused(model, {first: [0, 1]}, "for every module with experts")
    refused(model, {key: [2, 1] for key in paths}, "ascending order")
    refused(
        model, {first: [0, 1], **{key: [0, 1, 2] for key in others}}, "keep 2 experts and another 3"
    )
    refused(tiny_model("llama"), {}, "no module with routed experts")
    refused(tiny_model("jetmoe"), {}, r"the experts in model\.layers\.0\.mlp\.input_linear")


def test_groups_of_a_router_lose_as_many_each() -> None:
    model = model_of("correction bias, groups")
    paths = list(mixture_of(model).experts)
    refused(model, {key: [0, 1, 2, 4, 5, 6, 7] for key in paths}, "would keep 3, 4 experts")
    refused(model, {key: [0, 4] for key in paths}, "from groups of 2")


def test_a_router_that_reads_a_table_is_refused() -> None:
    model = tiny_model("deepseek_v4")
    paths = list(mixture_of(model).experts)
    refused(model, {key: [0, 1, 2] for key in paths}, r"tid2eid is a table of the experts")


def test_a_wrong_row_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    replace = expert_removal._replace

    def careless(model: Any, name: str, tensor: torch.Tensor) -> None:
        replace(model, name, tensor.flip(0) if name.endswith("mlp.gate.weight") else tensor)

    monkeypatch.setattr(expert_removal, "_replace", careless)
    model = tiny_model("mixtral")
    kept = {key: [1, 2, 3] for key in mixture_of(model).experts}
    with pytest.raises(PrunebenchError, match="another one than with these experts masked"):
        keep_experts(model, kept)
