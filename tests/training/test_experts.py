"""Experts are trained as the parameters that they are in, under the masks of their matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from prunebench.errors import PluginError
from prunebench.model.experts import find_experts
from prunebench.plugin.api.context import Context
from prunebench.plugin.host import load_plugins
from prunebench.testing.any_type import tiny_model
from prunebench.training.settings import TrainingSettings

TOKENS = torch.randint(3, 150, (4, 16), generator=torch.Generator().manual_seed(0))
SHORT = {"max_steps": 2, "batch_size": 2, "micro_batch_size": 2}


def context() -> Context:
    return Context(TOKENS, 0, [0, 1, 2, 3])


def apply(kind: str, name: str, model: Any, used: Context, **options: Any) -> None:
    plugin = load_plugins()[kind][name].value  # type: ignore[index]
    made = plugin(plugin.Options.model_validate(options))
    with torch.set_grad_enabled(kind == "recovery"):
        getattr(made, "prune" if kind == "method" else "recover")(model, used)


def matrices(model: Any) -> dict[str, torch.Tensor]:
    return {
        f"{path}.{name}": matrix.weight.clone()
        for path, experts in find_experts(model).items()
        for name, matrix in experts.matrices().items()
    }


@pytest.mark.parametrize(("family", "scope"), [("qwen3_moe", "linears"), ("gpt_oss", "all")])
def test_finetune_trains_experts_and_holds_their_zeros(family: str, scope: str) -> None:
    model = tiny_model(family)
    apply("method", "magnitude", model, context(), sparsity=0.5)
    before, used = matrices(model), context()
    apply("recovery", "finetune", model, used, scope=scope, learning_rate=1e-2, **SHORT)
    changed = 0
    for name, weight in matrices(model).items():
        assert torch.equal(weight == 0, before[name] == 0), name
        changed += not torch.equal(weight, before[name])
    assert changed


def test_finetune_of_all_parameters_holds_the_zeros_of_a_conv1d() -> None:
    """Its mask is [out, in], its parameter [in, out], and both have one name."""
    model = tiny_model("gpt2")
    apply("method", "magnitude", model, context(), sparsity=0.5)
    before = {path: each.weight.clone() for path, each in context().linears(model).items()}
    apply("recovery", "finetune", model, context(), scope="all", learning_rate=1e-2, **SHORT)
    after = {path: each.weight for path, each in context().linears(model).items()}
    assert all(torch.equal(after[path] == 0, each == 0) for path, each in before.items())
    assert not any(torch.equal(after[path], each) for path, each in before.items())


def test_imp_prunes_in_rounds() -> None:
    model = tiny_model("qwen3_moe")
    apply("method", "imp", model, context(), sparsity=0.5, rounds=2, **SHORT)
    for name, weight in matrices(model).items():
        assert int((weight == 0).sum()) == weight.numel() // 2, name


def test_lora_leaves_experts_as_they_are() -> None:
    model = tiny_model("qwen3_moe")
    apply("method", "magnitude", model, context(), sparsity=0.5)
    before, used = matrices(model), context()
    attention = model.model.layers[0].self_attn.q_proj.weight.clone()
    apply("recovery", "lora", model, used, learning_rate=1e-2, **SHORT)
    assert all(torch.equal(weight, before[name]) for name, weight in matrices(model).items())
    assert not torch.equal(model.model.layers[0].self_attn.q_proj.weight, attention)
    assert used.notes["targets"] == 16


@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v3"])
def test_lora_trains_shared_experts_and_dense_layers_of_mixtures(family: str) -> None:
    """Their linears are called as experts are, which PEFT takes for those of the fused ones."""
    model = tiny_model(family)
    apply("method", "magnitude", model, context(), sparsity=0.5)
    linears = {
        path: linear.weight.clone()
        for path, linear in context().linears(model).items()
        if ".experts." not in path
    }
    experts, used = matrices(model), context()
    apply("recovery", "lora", model, used, learning_rate=1e-2, **SHORT)
    assert all(torch.equal(weight, experts[name]) for name, weight in matrices(model).items())
    assert used.notes["targets"] == used.notes["masked_targets"] == len(linears)
    assert any("shared_expert" in path for path in linears)
    for path, before in linears.items():
        after = model.get_submodule(path).weight
        assert not torch.equal(after, before), path
        assert torch.equal(after == 0, before == 0), path


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_gradients_of_a_matrix_are_those_of_its_part(family: str) -> None:
    found: dict[str, torch.Tensor] = {}

    def see(_: Any, stats: Any) -> None:
        found.update({f"{each.layer}.{name}": each.gradient for name, each in stats.items()})

    model = tiny_model(family)
    context().observe_linears(model, {"gradient"}, see)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    experts = model.model.layers[1].mlp.experts
    experts.requires_grad_(True)
    with torch.enable_grad():
        loss = sum(model(window[None], labels=window[None]).loss for window in TOKENS) / len(TOKENS)
    loss.backward()
    for name, matrix in find_experts(model)["model.layers.1.mlp.experts"].matrices().items():
        expected = matrix.view(matrix.owner.grad)
        torch.testing.assert_close(found[f"1.mlp.experts.{name}"], expected, rtol=1e-3, atol=1e-5)


def test_a_part_of_a_parameter_is_not_trained_alone() -> None:
    model = tiny_model("qwen3_moe")
    used = context()
    path = "model.layers.0.mlp.experts.2.up_proj"
    some = {f"{path}.weight": used.linears(model)[path].weight}
    with pytest.raises(PluginError, match=r"without model\.layers\.0\.mlp\.experts\.0\.gate_proj"):
        used.train(model, some, TrainingSettings(**SHORT))
