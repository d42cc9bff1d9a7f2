"""The experts of a mixture: every matrix by name, and every row that an expert sees."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from prunebench.model.experts import (
    IMPLEMENTATION,
    ExpertRows,
    Experts,
    find_experts,
    observed_experts,
    unknown_experts,
)
from prunebench.testing.any_type import tiny_model

KINDS = {
    "plain": "qwen3_moe",
    "transposed, interleaved, biased": "gpt_oss",
    "transposed": "aria_text",
    "no gate": "nemotron_h",
    "tokens of all experts in one tensor": "llama4_text",
    "experts without weights": "longcat_flash",
    "a router that skips experts by a gate of 0": "zaya",
}
kinds = pytest.mark.parametrize("family", KINDS.values(), ids=KINDS.keys())
TOKENS = torch.randint(3, 150, (2, 10), generator=torch.Generator().manual_seed(0))


def eager(model: Any) -> Any:
    for module in model.modules():
        if hasattr(module, "has_gate"):
            module.config._experts_implementation_internal = "eager"
    return model


def forward(experts: Experts, rows: ExpertRows) -> torch.Tensor:
    """What an expert computes, from its matrices alone."""
    matrices = experts.matrices()

    def project(name: str, inputs: torch.Tensor) -> torch.Tensor:
        matrix = matrices[f"{rows.expert}.{name}"]
        return torch.nn.functional.linear(inputs, matrix.weight, matrix.bias)

    up = project("up_proj", rows.inputs)
    module = experts.module
    if not experts.gated:
        inner = module.act_fn(up)
    elif hasattr(module, "alpha"):  # gpt-oss
        gate = project("gate_proj", rows.inputs).clamp(max=module.limit)
        inner = (up.clamp(-module.limit, module.limit) + 1) * gate
        inner = inner * torch.sigmoid(gate * module.alpha)
    else:
        inner = module.act_fn(project("gate_proj", rows.inputs)) * up
    torch.testing.assert_close(inner, rows.intermediate)
    return project("down_proj", inner)


@kinds
def test_the_model_computes_as_its_own_code_does_to_the_last_bit(family: str) -> None:
    model = eager(tiny_model(family))
    seen: list[int] = []
    experts = find_experts(model).values()
    # bfloat16 shows in which type a family adds up the outputs of a token's experts.
    for dtype in (torch.float32, torch.bfloat16):
        wanted = model.to(dtype)(TOKENS).logits
        with observed_experts({each: lambda rows: seen.append(rows.expert) for each in experts}):
            found = model(TOKENS).logits
        assert seen
        assert torch.equal(found, wanted)


@kinds
def test_every_row_fits_the_matrices_of_its_expert(family: str) -> None:
    model = tiny_model(family)
    rows: list[tuple[Experts, ExpertRows]] = []
    experts = find_experts(model).values()
    with observed_experts(
        {each: lambda seen, each=each: rows.append((each, seen)) for each in experts}
    ):
        model(TOKENS)
    assert rows
    for each, seen in rows:
        assert len(seen.gates) == len(seen.inputs)
        torch.testing.assert_close(forward(each, seen), seen.outputs)


@kinds
def test_matrices_write_through_and_cover_every_weight_once(family: str) -> None:
    model = tiny_model(family)
    for experts in find_experts(model).values():
        matrices = experts.matrices()
        assert [name for group in experts.groups() for name in group] == list(matrices)
        for matrix in matrices.values():
            assert matrix.weight.shape == (matrix.out_features, matrix.in_features)
            matrix.weight.fill_(0.5)
            matrix.weight.add_(0.5)  # a second time would give 2
        owners = {matrix.parameter for matrix in matrices.values()}
        for name in owners:
            parameter = experts.module.get_parameter(name)[: experts.count]
            assert torch.equal(parameter, torch.ones_like(parameter))


def test_the_setting_of_the_model_is_back_afterwards_even_after_an_error() -> None:
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    model = tiny_model("qwen3_moe")
    before = model.config._experts_implementation
    first, *_ = find_experts(model).values()

    def fail(_: ExpertRows) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), observed_experts({first: fail}):
        model(TOKENS)
    assert model.config._experts_implementation == before
    assert IMPLEMENTATION not in ALL_EXPERTS_FUNCTIONS


def test_experts_that_nobody_can_observe_are_named() -> None:
    model = tiny_model("jetmoe")
    assert not find_experts(model)
    assert "model.layers.0.mlp.input_linear" in unknown_experts(model)
