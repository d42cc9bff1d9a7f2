"""The statistics of experts: gathered by token, completed where there are too few of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from prunebench.layerwise import expert_tokens
from prunebench.layerwise.expert_tokens import FEWEST_TOKENS
from prunebench.model.anatomy import anatomy
from prunebench.model.experts import find_experts, observed_experts
from prunebench.plugin.api.context import Context
from prunebench.testing.any_type import tiny_model
from prunebench_plugins.magnitude import Magnitude
from prunebench_plugins.random import Random
from prunebench_plugins.sparsegpt import SparseGPT
from prunebench_plugins.wanda import Wanda

TOKENS = torch.randint(3, 150, (6, 20), generator=torch.Generator().manual_seed(0))
FAMILIES = ("qwen3_moe", "gpt_oss", "nemotron_h", "llama4_text")


def context(tokens: torch.Tensor = TOKENS, layers: int = 4) -> Context:
    return Context(calibration=tokens, seed=0, kept_layers=list(range(layers)))


def prune(method: Any, model: Any, tokens: torch.Tensor = TOKENS) -> Context:
    found = context(tokens)
    with torch.no_grad():
        method.prune(model, found)
    return found


def wanda(sparsity: float | str = 0.5) -> Wanda:
    return Wanda(Wanda.Options(sparsity=sparsity))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_statistics_of_an_expert_are_those_of_its_rows(family: str) -> None:
    model = tiny_model(family)
    parts = anatomy(model)
    layer = next(index for index, each in enumerate(parts.layers) if find_experts(each))
    [experts] = find_experts(parts.layers[layer]).values()
    rows: dict[str, list[torch.Tensor]] = {}

    def see(seen: Any) -> None:
        rows.setdefault(f"{experts.path}.{seen.expert}.up_proj", []).append(seen.inputs)
        rows.setdefault(f"{experts.path}.{seen.expert}.down_proj", []).append(seen.intermediate)

    with observed_experts({experts: see}):
        model(TOKENS)
    found: dict[str, Any] = {}

    def keep(linears: Any, stats: Any) -> None:
        del linears
        if next(iter(stats.values())).layer == layer:
            found.update(stats)

    context().observe_linears(model, {"input_norm", "hessian", "input_mean", "input_max"}, keep)
    checked = 0
    for name, pieces in rows.items():
        inputs = torch.cat(pieces)
        if len(inputs) < FEWEST_TOKENS:
            continue
        checked += 1
        stats = found[name]
        assert stats.tokens == len(inputs)
        norm = (inputs.square().sum(dim=0) / len(TOKENS)).sqrt()
        torch.testing.assert_close(stats.input_norm, norm, rtol=1e-4, atol=1e-5)
        hessian = 2 / len(TOKENS) * inputs.t() @ inputs
        torch.testing.assert_close(stats.hessian, hessian, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(stats.input_mean, inputs.mean(dim=0), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(stats.input_max, inputs.abs().amax(dim=0))
    assert checked


@pytest.mark.parametrize(
    ("family", "method"),
    [
        *((family, Wanda) for family in FAMILIES),
        ("gpt_oss", SparseGPT),
        ("nemotron_h", Magnitude),
        ("qwen3_moe", Random),
    ],
)
def test_methods_prune_every_expert(family: str, method: Any) -> None:
    model = tiny_model(family)
    prune(method(method.Options(sparsity="2:4")), model)
    parts = anatomy(model)
    for layer in parts.layers:
        for matrix in parts.linears(layer).values():
            zeros = (matrix.weight == 0).reshape(-1, 4).sum(dim=1)
            assert int(zeros.min()) == int(zeros.max()) == 2
    assert bool(model(TOKENS).logits.isfinite().all())


def test_an_expert_with_too_few_tokens_is_pruned_by_magnitude_and_the_record_counts_it() -> None:
    model, by_magnitude = tiny_model("qwen3_moe"), tiny_model("qwen3_moe")
    few = TOKENS[:1, :4]
    notes = prune(wanda(), model, few).notes
    [first, *_] = notes["experts_by_magnitude"]["tokens"].values()
    assert notes["experts_by_magnitude"]["fewer_tokens_than"] == FEWEST_TOKENS
    assert first < FEWEST_TOKENS
    assert notes["experts_by_magnitude"]["experts"] == 16
    assert notes["tokens_per_expert"]["most"] <= 8

    from prunebench.layerwise.masks import lowest

    for path, experts in find_experts(by_magnitude).items():
        for name, matrix in experts.matrices().items():
            weight = matrix.weight.clone()
            expected = weight.masked_fill(lowest(weight.abs(), 0.5, group="row"), 0)
            found = find_experts(model)[path].matrices()[name].weight
            assert torch.equal(found, expected)


def test_experts_that_see_enough_are_not_pruned_by_magnitude() -> None:
    model = tiny_model("qwen3_moe", num_experts_per_tok=4)
    notes = prune(wanda(), model).notes
    assert "experts_by_magnitude" not in notes
    assert notes["tokens_per_expert"] == {"fewest": 120, "median": 120, "most": 120}
    untouched = tiny_model("qwen3_moe", num_experts_per_tok=4)
    path, experts = next(iter(find_experts(model).items()))
    dense = find_experts(untouched)[path].matrices()["0.up_proj"].weight
    from prunebench.layerwise.masks import lowest

    magnitude = dense.masked_fill(lowest(dense.abs(), 0.5, group="row"), 0)
    assert not torch.equal(experts.matrices()["0.up_proj"].weight, magnitude)


@pytest.mark.parametrize("method", [Wanda, SparseGPT])
def test_gathering_in_turns_gives_the_same_weights(
    method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, in_turns = tiny_model("qwen3_moe"), tiny_model("qwen3_moe")
    prune(method(method.Options(sparsity=0.5)), together)
    monkeypatch.setattr(expert_tokens, "STATISTICS_BYTES", 1)
    prune(method(method.Options(sparsity=0.5)), in_turns)
    for name, tensor in together.state_dict().items():
        assert torch.equal(tensor, in_turns.state_dict()[name]), name


def test_a_router_is_never_pruned() -> None:
    for family in FAMILIES:
        parts = anatomy(tiny_model(family))
        for layer in parts.layers:
            assert not [name for name in parts.linears(layer) if "gate" in name.split(".")]
            assert not [name for name in parts.linears(layer) if "router" in name]
