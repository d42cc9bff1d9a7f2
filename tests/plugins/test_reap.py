"""REAP scores experts as its paper does, and removes the lowest with all that belongs to them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from prunebench.errors import PrunebenchError
from prunebench.model.anatomy import anatomy
from prunebench.plugin.api.context import Context
from prunebench.testing.any_type import tiny_model
from prunebench_plugins.reap import Reap

TOKENS = torch.randint(3, 150, (8, 24), generator=torch.Generator().manual_seed(0))
CRITERIA = ("reap", "frequency", "ean_sum", "ean_mean", "weighted_ean_sum", "max_activations")


def prune(model: Any, tokens: torch.Tensor = TOKENS, **options: Any) -> Context:
    context = Context(tokens, 0, list(range(len(anatomy(model).layers))))
    with torch.no_grad():
        Reap(Reap.Options(**options)).prune(model, context)
    return context


def moe(**overrides: Any) -> Any:
    return tiny_model("qwen3_moe", **{"num_local_experts": 6, **overrides})


def by_hand(model: Any, criterion: str) -> list[list[float]]:
    """The scores of all experts, from the modules of a Qwen3-MoE alone."""
    inputs: list[torch.Tensor] = []
    hooks = [
        layer.mlp.register_forward_pre_hook(lambda _, args: inputs.append(args[0].flatten(0, 1)))
        for layer in model.model.layers
    ]
    model(TOKENS)
    for hook in hooks:
        hook.remove()
    scores = []
    for layer, x in zip(model.model.layers, inputs, strict=True):
        experts, k = layer.mlp.experts, model.config.num_experts_per_tok
        shares = (x @ layer.mlp.gate.weight.t()).softmax(dim=1)
        top = shares.topk(k, dim=1)
        gates = torch.zeros_like(shares).scatter(1, top.indices, top.values)
        if model.config.norm_topk_prob:
            gates = gates / gates.sum(dim=1, keepdim=True)
        of_layer = []
        for expert in range(experts.num_experts):
            rows = (top.indices == expert).any(dim=1)
            gate, up = (x[rows] @ experts.gate_up_proj[expert].t()).chunk(2, dim=1)
            out = (torch.nn.functional.silu(gate) * up) @ experts.down_proj[expert].t()
            norms, weighted = out.norm(dim=1), gates[rows, expert] * out.norm(dim=1)
            of_layer.append(
                {
                    "reap": weighted.mean(),
                    "frequency": rows.sum(),
                    "ean_sum": norms.sum(),
                    "ean_mean": norms.mean(),
                    "weighted_ean_sum": weighted.sum(),
                    "max_activations": out.max() if len(out) else torch.tensor(torch.nan),
                }[criterion].item()
            )
        scores.append(of_layer)
    return scores


@pytest.mark.parametrize("criterion", CRITERIA)
def test_scores_are_those_of_the_formulas(criterion: str) -> None:
    expected = by_hand(moe(), criterion)
    found = prune(moe(), criterion=criterion, ratio=0).notes["scores"]
    torch.testing.assert_close(torch.tensor(list(found.values())), torch.tensor(expected).float())


@pytest.mark.parametrize("norm_topk_prob", [True, False])
def test_the_gates_of_the_released_code_are_the_softmax_of_the_logits(norm_topk_prob: bool) -> None:
    model = moe(norm_topk_prob=norm_topk_prob)  # its own gates are just that
    own = prune(model, ratio=0).notes["scores"]
    reference = prune(model, ratio=0, gates="reference").notes["scores"]
    assert all(own[path] == pytest.approx(reference[path], rel=1e-5) for path in own)
    sigmoid = tiny_model("glm4_moe")
    own = prune(sigmoid, ratio=0).notes["scores"]
    reference = prune(sigmoid, ratio=0, gates="reference").notes["scores"]
    path = next(iter(own))
    assert own[path] != pytest.approx(reference[path], rel=1e-2)


def test_scores_are_the_same_if_layers_compute_one_at_a_time() -> None:
    whole = prune(moe(), ratio=0, gates="reference").notes["scores"]
    context = Context(TOKENS, 0, [0, 1, 2, 3], device=torch.device("cpu"))
    with torch.no_grad():
        Reap(Reap.Options(ratio=0, gates="reference")).prune(moe(), context)
    for path, scores in context.notes["scores"].items():
        assert scores == pytest.approx(whole[path], rel=1e-5)


def test_the_lowest_are_removed_and_ties_by_index() -> None:
    model = moe()
    scores = by_hand(model, "reap")
    notes = prune(model, ratio=0.5).notes
    for of_layer, removed in zip(scores, notes["removed_experts"].values(), strict=True):
        order = sorted(range(6), key=lambda expert: of_layer[expert])
        assert removed == order[:3]
    assert model.config.num_local_experts == 3
    assert notes["experts"] == 6
    equal = moe()
    for layer in equal.model.layers:  # all experts alike, and chosen alike
        for parameter in layer.mlp.experts.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter).clone())
    notes = prune(equal, ratio=0.5, criterion="max_activations").notes
    assert len(notes["removed_experts"]) == 4


def test_the_number_is_rounded_down_and_zero_changes_nothing() -> None:
    for ratio, left in ((0.0, 6), (0.16, 6), (0.17, 5), (0.5, 3)):
        model = moe()
        before = model(TOKENS).logits
        context = prune(model, ratio=ratio)
        assert model.config.num_local_experts == left
        assert torch.equal(model(TOKENS).logits, before) == (left == 6)
        assert all(len(kept) == left for kept in context.dense_indices.experts.values())


def test_the_order_of_experts_does_not_matter() -> None:
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    model, permuted = moe(), moe()
    for layer in permuted.model.layers:
        for parameter in (*layer.mlp.experts.parameters(), layer.mlp.gate.weight):
            parameter.copy_(parameter[order].clone())
    scores = prune(model, ratio=0).notes["scores"]
    for path, found in prune(permuted, ratio=0).notes["scores"].items():
        assert found == pytest.approx([scores[path][int(each)] for each in order], rel=1e-4)


@pytest.mark.parametrize("norm_topk_prob", [True, False])
def test_an_expert_that_is_never_picked_goes_first(
    norm_topk_prob: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = moe(norm_topk_prob=norm_topk_prob, num_experts_per_tok=1)
    for layer in model.model.layers:
        layer.mlp.gate.weight[:4] = 0
        layer.mlp.gate.weight[5] = -layer.mlp.gate.weight[4] * 0.98  # one of both wins
    before = model(TOKENS).logits
    notes = prune(model, ratio=0.5).notes
    removed = [set(gone) for gone in notes["removed_experts"].values()]
    assert all(gone <= {0, 1, 2, 3} for gone in removed)
    assert notes["never_routed"] > 0
    assert "got no calibration token" in caplog.text
    assert None in next(iter(notes["scores"].values()))
    # With renormalised gates nothing else depends on it; the softmax over all experts does.
    close = torch.allclose(model(TOKENS).logits, before, rtol=1e-4, atol=1e-5)
    assert close == norm_topk_prob


def test_every_group_of_a_router_loses_as_many() -> None:
    model = tiny_model("deepseek_v3", n_routed_experts=8, n_group=2)
    notes = prune(model, ratio=0.4).notes
    for removed in notes["removed_experts"].values():
        assert [sum(each // 4 == group for each in removed) for group in (0, 1)] == [1, 1]
    assert bool(model(TOKENS).logits.isfinite().all())


@pytest.mark.parametrize(("layer", "kept"), [(0, (True, True)), (3, (False, True))])
def test_super_experts_are_kept(layer: int, kept: tuple[bool, bool]) -> None:
    for outliers, wanted in zip((False, True), kept, strict=True):
        model = moe()
        [rarest, *_] = prune(moe(), criterion="frequency", ratio=0.2).notes["removed_experts"][
            f"model.layers.{layer}.mlp.experts"
        ]
        model.model.layers[layer].mlp.experts.down_proj[rarest] *= 100
        notes = prune(
            model,
            criterion="frequency",
            ratio=0.5,
            preserve_super_experts=True,
            preserve_outliers=outliers,
        ).notes
        assert (
            rarest not in notes["removed_experts"][f"model.layers.{layer}.mlp.experts"]
        ) == wanted


def test_defaults_and_bad_options() -> None:
    assert Reap.Options().model_dump() == {
        "ratio": 0.5,
        "criterion": "reap",
        "gates": "model",
        "preserve_super_experts": False,
        "preserve_outliers": False,
    }
    with pytest.raises(ValidationError):
        Reap.Options(ratio=1)
    with pytest.raises(PrunebenchError, match=r"1 of 6 experts would be left.*at most 0\.6667"):
        prune(moe(), ratio=0.9)
    with pytest.raises(PrunebenchError, match="no module with routed experts"):
        prune(tiny_model("llama"), ratio=0.5)
    damaged = moe()
    damaged.model.layers[1].mlp.experts.down_proj[0] = torch.nan
    with pytest.raises(PrunebenchError, match=r"layers\.[12]\.mlp\.experts: the output of an"):
        prune(damaged)


def test_apply_removes_the_same_experts_from_another_copy() -> None:
    from prunebench.measure.audit import audit, dense_facts
    from prunebench.plugin.host import load_plugins

    model, other = moe(), moe()
    dense = dense_facts(model)
    context = prune(model, ratio=0.5)
    audited = audit(model, dense, context.dense_indices)
    assert audited.experts is not None
    assert (audited.experts.per_layer, audited.experts.per_layer_dense) == (3, 6)
    assert audited.kept is not None
    kept = audited.kept.model_dump(mode="json")
    kind = load_plugins()["method"]["apply"].value
    options = kind.Options.model_validate({"units": {}})
    assert "experts" not in options.model_dump()["units"]  # ids of older cells
    from prunebench_plugins.apply_units import units_of

    units = units_of({"shape": {}, "kept": kept}).model_dump()
    with torch.no_grad():
        kind(kind.Options.model_validate({"units": units})).prune(
            other, Context(None, 0, [0, 1, 2, 3])
        )
    assert torch.equal(other(TOKENS).logits, model(TOKENS).logits)
    with pytest.raises(PrunebenchError, match="layer 0 has no routed experts"):
        kind(kind.Options.model_validate({"units": {"experts": {"0": [1]}}})).prune(
            tiny_model("llama"), Context(None, 0, [0, 1, 2, 3])
        )


def test_the_audit_tells_sparsity_with_and_without_experts() -> None:
    from prunebench.measure.audit import audit, dense_facts

    model = moe()
    dense = dense_facts(model)
    context = Context(None, 0, [0, 1, 2, 3])
    for path, linear in context.linears(model).items():
        if ".experts." in path:
            linear.weight[: len(linear.weight) // 2] = 0
    found = audit(model, dense, context.dense_indices)
    assert found.experts is not None
    assert (found.experts.sparsity, found.experts.sparsity_without) == (0.5, 0)
    assert 0 < found.sparsity < 0.5
    assert found.experts.zeros == found.zeros
    assert {each.name for each in found.linears if "experts" in each.name} == {
        "mlp.experts.*.gate_proj", "mlp.experts.*.up_proj", "mlp.experts.*.down_proj",
    }  # fmt: skip
