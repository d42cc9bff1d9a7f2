"""SparseGPT: the invariants of its definition in float64, and the whole method on every family."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunebench import Context, LinearStats, Method, PrunebenchError, anatomy, lowest
from prunebench.plugin.host import load_plugins
from prunebench_plugins.sparsegpt import Rows, inverse_factor, sweep
from tiny import FAMILIES, tiny_model

DAMPING = 0.01


def build(**options: object) -> Method:
    cls = load_plugins()["method"]["sparsegpt"].value
    return cls(cls.Options.model_validate(options))


def prune(model, method: Method) -> Context:
    ids = torch.randint(
        0, model.config.vocab_size, (8, 32), generator=torch.Generator().manual_seed(5)
    )
    context = Context(ids, 0, list(range(len(anatomy(model).layers))))
    with torch.no_grad():
        method.prune(model, context)
    return context


def weights(model) -> dict[tuple[int, str], torch.Tensor]:
    parts = anatomy(model)
    return {
        (i, n): lin.weight
        for i, layer in enumerate(parts.layers)
        for n, lin in parts.linears(layer).items()
    }


def problem(rows: int = 12, features: int = 24, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight matrix [rows, features] and the Hessian of correlated inputs, float64."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(features, features, generator=generator, dtype=torch.float64)
    inputs = mixing @ torch.randn(features, 4 * features, generator=generator, dtype=torch.float64)
    return torch.randn(
        rows, features, generator=generator, dtype=torch.float64
    ), inputs @ inputs.t()


def solve(
    weight: torch.Tensor, hessian: torch.Tensor, sparsity: float | str, **rest
) -> tuple[torch.Tensor, float]:
    """The pruned weights [rows, features], and the loss that the sweep reports."""
    columns = weight.t().clone()
    factor = inverse_factor(hessian, DAMPING)
    assert factor is not None
    loss = sweep(columns, factor, [Rows(len(weight), sparsity)], **rest)
    return columns.t(), loss


def damped(hessian: torch.Tensor) -> torch.Tensor:
    return hessian + DAMPING * hessian.diagonal().mean() * torch.eye(
        len(hessian), dtype=hessian.dtype
    )


def error(change: torch.Tensor, hessian: torch.Tensor) -> float:
    return float((change @ hessian * change).sum() / 2)


@pytest.mark.parametrize("panel", [1, 7, 23, 24, 192])
def test_the_factor_is_the_upper_root_of_the_damped_inverse(
    panel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunebench_plugins.sparsegpt.PANEL", panel)
    _, hessian = problem()
    factor = inverse_factor(hessian, DAMPING)
    assert torch.equal(factor, factor.triu())
    assert bool((factor.diagonal() > 0).all())
    torch.testing.assert_close(factor.t() @ factor, torch.linalg.inv(damped(hessian)))


@settings(max_examples=30)
@given(
    st.integers(0, 1000),
    st.sampled_from([0.0, 0.3, 0.5, 0.9, "2:4", "1:4", "3:4", "2:6"]),
    st.sampled_from([12, 24, 36, 128]),
    st.booleans(),
)
def test_the_loss_is_the_output_error_of_the_change(
    seed: int, sparsity: float | str, block: int, threshold
) -> None:
    """Invariant 1, an identity that holds only if factor, errors and updates all do."""
    weight, hessian = problem(features=72, seed=seed)
    pruned, loss = solve(weight, hessian, sparsity, block_size=block, threshold=threshold)
    assert loss == pytest.approx(error(weight - pruned, damped(hessian)), rel=1e-9, abs=1e-12)


def test_what_is_removed_is_a_zero_without_a_sign() -> None:
    pruned, _ = solve(*problem(), 0.5)
    assert int((pruned == 0).sum()) == pruned.numel() // 2
    assert not bool(torch.signbit(pruned[pruned == 0]).any())


@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_uncorrelated_inputs_make_it_magnitude_by_block(scale: float) -> None:
    weight, _ = problem()
    pruned, _ = solve(weight, scale * torch.eye(24, dtype=torch.float64), 0.5, block_size=8)
    mask = torch.cat(
        [lowest(block, 0.5, group="matrix") for block in weight.abs().split(8, dim=1)], dim=1
    )
    assert torch.equal(pruned, weight.masked_fill(mask, 0))


def test_nothing_asked_for_is_nothing_changed() -> None:
    weight, hessian = problem()
    pruned, loss = solve(weight, hessian, 0.0)
    assert torch.equal(pruned, weight)
    assert loss == 0


@pytest.mark.parametrize("sparsity", [0.5, "2:4"])
def test_the_scale_of_the_hessian_does_not_matter(sparsity: float | str) -> None:
    weight, hessian = problem()
    torch.testing.assert_close(
        solve(weight, hessian, sparsity)[0], solve(weight, 1e4 * hessian, sparsity)[0]
    )


def test_blocks_decide_the_mask_and_nothing_else() -> None:
    """If every pair has one tiny weight, all block sizes remove it and give the same updates."""
    weight, hessian = problem(features=96)
    weight[:, ::2] *= 1e-9
    hessian = torch.eye(96, dtype=torch.float64) + 1e-12 * hessian
    results = [solve(weight, hessian, "1:2", block_size=block)[0] for block in (2, 16, 48, 96, 128)]
    for other in results[1:]:
        assert torch.equal(other == 0, results[0] == 0)
        torch.testing.assert_close(other, results[0], rtol=1e-9, atol=1e-15)


def test_the_error_is_between_least_squares_and_no_update_under_the_same_mask() -> None:
    weight, hessian = problem()
    pruned, _ = solve(weight, hessian, 0.5)
    target = damped(hessian)
    best = torch.zeros_like(weight)
    for row, kept in enumerate(pruned != 0):
        best[row, kept] = torch.linalg.solve(target[kept][:, kept], target[kept] @ weight[row])
    ours = error(weight - pruned, target)
    assert error(weight - best, target) <= ours * (1 + 1e-9)
    assert ours < error(weight.masked_fill(pruned == 0, 0) - weight, target)


def test_on_average_better_than_wanda_and_wanda_better_than_magnitude() -> None:
    errors = torch.zeros(3)
    for seed in range(10):
        weight, hessian = problem(32, 48, seed)
        hessian *= torch.logspace(-1, 1, 48, dtype=torch.float64).outer(
            torch.logspace(-1, 1, 48, dtype=torch.float64)
        )
        by_magnitude = weight.masked_fill(lowest(weight.abs(), 0.5, group="matrix"), 0)
        by_wanda = weight.masked_fill(
            lowest(weight.abs() * hessian.diagonal().sqrt(), 0.5, group="row"), 0
        )
        for place, pruned in enumerate((solve(weight, hessian, 0.5)[0], by_wanda, by_magnitude)):
            errors[place] += error(weight - pruned, hessian)
    assert errors[0] < 0.7 * errors[1]
    assert errors[1] < 0.7 * errors[2]


@pytest.mark.parametrize("threshold", [False, True])
def test_each_linear_of_a_group_is_pruned_as_if_alone(threshold: bool) -> None:
    weight, hessian = problem(rows=20)
    factor = inverse_factor(hessian, DAMPING)
    together = weight.t().clone()
    linears = [Rows(5, 0.25), Rows(15, 0.75)]  # an allocation may give each linear its own
    loss = sweep(together, factor, linears, block_size=8, threshold=threshold)
    parts = [
        solve(part, hessian, linear.sparsity, block_size=8, threshold=threshold)
        for part, linear in zip(weight.split([5, 15]), linears, strict=True)
    ]
    torch.testing.assert_close(together.t(), torch.cat([part for part, _ in parts]))
    assert loss == pytest.approx(sum(each for _, each in parts))


@given(st.floats(0, 0.99), st.integers(1, 30))
def test_clean_counts_are_exact_and_the_published_rule_takes_one_more(
    share: float, block: int
) -> None:
    weight, hessian = problem(rows=7)
    for threshold in (False, True):
        pruned, _ = solve(weight, hessian, share, block_size=block, threshold=threshold)
        for columns in pruned.split(block, dim=1):
            assert int((columns == 0).sum()) == int(columns.numel() * share) + threshold


@pytest.mark.parametrize("mode", ["clean", "reference"])
@pytest.mark.parametrize("sparsity", [0.5, "2:4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gets_the_sparsity_asked_for(
    family: str, sparsity: float | str, mode: str
) -> None:
    model, dense = tiny_model(family), tiny_model(family)
    context = prune(model, build(sparsity=sparsity, mode=mode, block_size=32))
    for key, weight in weights(model).items():
        zero = weight == 0
        if sparsity == "2:4":
            assert bool((zero.reshape(-1, 4).sum(1) == 2).all()), key
        else:
            expected = sum(
                int(block.numel() * 0.5) + (mode == "reference")
                for block in weight.split(32, dim=1)
            )
            assert int(zero.sum()) == expected, key
        kept = weight[~zero] != weights(dense)[key][~zero]
        assert kept.float().mean() > 0.5, "what is kept makes up for what went"
    pruned = {id(weight) for weight in weights(model).values()}
    for (path, ours), (_, theirs) in zip(
        model.named_parameters(), dense.named_parameters(), strict=True
    ):
        assert id(ours) in pruned or torch.equal(ours, theirs), path
    assert bool(torch.isfinite(model(torch.arange(8)[None]).logits).all())
    assert len(context.notes["reconstruction_loss"]) == 4
    assert min(context.notes["reconstruction_loss"]) > 0
    assert "damping_raised" not in context.notes


@pytest.mark.parametrize("family", FAMILIES)
def test_true_sequential_sees_what_was_pruned_in_the_layer(family: str) -> None:
    usual, sequential = tiny_model(family), tiny_model(family)
    prune(usual, build(sparsity="2:4"))
    prune(sequential, build(sparsity="2:4", true_sequential=True))
    first, *_, last = [key for key in weights(usual) if key[0] == 0]
    assert torch.equal(weights(usual)[first], weights(sequential)[first])
    assert not torch.equal(weights(usual)[last], weights(sequential)[last])
    for weight in weights(sequential).values():
        assert bool(((weight == 0).reshape(-1, 4).sum(1) == 2).all())


def test_bfloat16_weights_are_solved_in_float32() -> None:
    model, twin = tiny_model("llama").bfloat16(), tiny_model("llama").bfloat16()
    stats, method = (
        LinearStats(0, "x", torch.Generator(), gathered={"hessian": problem()[1].float()}),
        build(),
    )
    weight = weights(model)[0, "self_attn.q_proj"][:, :24].contiguous()
    exact = weight.float()
    method.prune_group([weight], [stats])
    method.prune_group([exact], [stats])
    assert weight.dtype == torch.bfloat16
    assert torch.equal(weight, exact.bfloat16())
    prune(twin, build(sparsity="2:4"))
    assert all(
        bool(((each == 0).reshape(-1, 4).sum(1) >= 2).all()) for each in weights(twin).values()
    )


def test_inputs_that_are_always_zero_lose_their_weights() -> None:
    weight, hessian = problem()
    weight, hessian = weight.float(), hessian.float()
    hessian[[3, 17]] = 0
    hessian[:, [3, 17]] = 0
    build(sparsity=0.1).prune_group(
        [weight], [LinearStats(0, "x", torch.Generator(), gathered={"hessian": hessian})]
    )
    assert bool((weight[:, [3, 17]] == 0).all())
    assert int((weight == 0).sum()) == int(0.1 * 12 * 24), (
        "they are the cheapest, so that the count holds"
    )


def test_a_feature_that_is_always_zero_loses_its_weights_in_a_model() -> None:
    model = tiny_model("opt")
    layer = anatomy(model).layers[1]
    layer.fc1.weight.data[7], layer.fc1.bias.data[7] = 0.0, -1.0  # relu gives 0
    prune(model, build(sparsity=0.0))
    assert bool((layer.fc2.weight[:, 7] == 0).all())
    assert not bool((layer.fc2.weight[:, 8] == 0).any())


def singular(value: float = 0.0) -> torch.Tensor:
    """Rank 1, and slightly indefinite by ``value``."""
    return torch.ones(24, 24) - value * torch.eye(24)


def test_damping_is_raised_until_the_hessian_is_definite(caplog: pytest.LogCaptureFixture) -> None:
    class Singular(type(build())):  # type: ignore[misc]
        def prune_group(self, weights, stats) -> None:
            each = LinearStats(
                stats[0].layer,
                stats[0].name,
                stats[0].generator,
                gathered={"hessian": singular(0.3)},
            )
            super().prune_group([weights[0][:, :24]], [each])

    model = tiny_model("llama")
    with caplog.at_level(logging.WARNING):
        context = prune(model, Singular(Singular.Options()))
    raised = context.notes["damping_raised"]
    assert len(raised) == 16
    assert raised[0] == {"layer": 0, "linear": "self_attn.q_proj", "damping": pytest.approx(1.0)}
    assert (
        "layer 0, self_attn.q_proj: the Hessian is not positive definite; damping 0.1"
        in caplog.messages
    )
    assert bool(torch.isfinite(weights(model)[0, "self_attn.q_proj"]).all())


def test_a_hessian_that_no_damping_repairs_names_layer_and_linear() -> None:
    weight = torch.ones(4, 24)
    stats = LinearStats(3, "mlp.up_proj", torch.Generator(), gathered={"hessian": -torch.eye(24)})
    with pytest.raises(
        PrunebenchError, match=r"^layer 3, mlp.up_proj: .*damping up to 100 "
    ) as raised:
        build().prune_group([weight], [stats])
    assert "more windows" in str(raised.value.hint)
    assert torch.equal(weight, torch.ones(4, 24)), "left as it was"


def test_weights_that_are_not_finite_are_named() -> None:
    weight = torch.ones(4, 24)
    weight[2, 5] = float("nan")
    stats = LinearStats(
        3, "mlp.up_proj", torch.Generator(), gathered={"hessian": problem()[1].float()}
    )
    with pytest.raises(PrunebenchError, match=r"^layer 3, mlp.up_proj: the weights are not finite"):
        build().prune_group([weight], [stats])


def test_a_pattern_that_does_not_divide_names_the_linear() -> None:
    with pytest.raises(
        PrunebenchError, match=r"^layer 0, self_attn.q_proj: groups of 7 do not divide 48"
    ):
        prune(tiny_model("llama"), build(sparsity="3:7", block_size=70))


@pytest.mark.parametrize(("keep", "of"), [(2, 4), (3, 7), (100, 256), (1, 128), (255, 256)])
@pytest.mark.parametrize("threshold", [False, True])
def test_blocks_never_cut_groups_however_wide_those_are(
    keep: int, of: int, threshold: bool
) -> None:
    weight, hessian = problem(rows=5, features=2 * of)
    pruned, loss = solve(weight, hessian, f"{keep}:{of}", threshold=threshold)
    assert bool(((pruned == 0).reshape(-1, of).sum(1) == of - keep).all())
    assert loss == pytest.approx(error(weight - pruned, damped(hessian)), rel=1e-9)
    for block in (1, of, 3 * of + 1):
        other, _ = solve(weight, hessian, f"{keep}:{of}", threshold=threshold, block_size=block)
        assert torch.equal(other == 0, pruned == 0)


def test_of_equal_costs_in_a_group_the_lower_index_goes() -> None:
    weight = torch.ones(3, 8, dtype=torch.float64)
    pruned, _ = solve(weight, torch.eye(8, dtype=torch.float64), "1:4")
    assert pruned[0].tolist() == [0, 0, 0, 1] * 2


def test_linears_that_share_an_input_may_have_different_patterns() -> None:
    weight, hessian = problem(rows=20)
    factor = inverse_factor(hessian, DAMPING)
    together = weight.t().clone()
    sweep(together, factor, [Rows(5, "1:4"), Rows(8, "3:4"), Rows(7, "4:4")])
    zeros = (together.t() == 0).view(20, -1, 4).sum(2)
    assert [set(part.flatten().tolist()) for part in zeros.split([5, 8, 7])] == [{3}, {1}, {0}]
    for part, rows, sparsity in zip(
        together.t().split([5, 8, 7]), weight.split([5, 8, 7]), ["1:4", "3:4", "4:4"], strict=True
    ):
        torch.testing.assert_close(part, solve(rows, hessian, sparsity)[0])


def test_two_patterns_are_not_taken_for_one() -> None:
    weight, hessian = problem(rows=8)
    together = weight.t().clone()
    sweep(together, inverse_factor(hessian, DAMPING), [Rows(5, "1:4"), Rows(3, "3:4")])
    zeros = (together.t() == 0).view(8, -1, 4).sum(2)
    assert [set(part.flatten().tolist()) for part in zeros.split([5, 3])] == [{3}, {1}]


@pytest.mark.parametrize("damping", [0.01, 0.3])
@pytest.mark.parametrize("sparsity", [0.5, "2:4"])
def test_the_method_uses_its_options_and_has_the_papers(
    sparsity: float | str, damping: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of 128 columns and 1 % of the mean diagonal, if nothing else is asked for."""
    monkeypatch.setitem(globals(), "DAMPING", damping)  # what `by_the_paper` uses
    weight, hessian = problem(rows=9, features=160)
    for block in (128, 40):
        options = (
            {} if (damping, block) == (0.01, 128) else {"damping": damping, "block_size": block}
        )
        pruned = weight.clone()
        method = build(sparsity=sparsity, **options)
        method.prune_group(
            [pruned], [LinearStats(0, "x", torch.Generator(), {"hessian": hessian.clone()})]
        )
        torch.testing.assert_close(pruned, by_the_paper(weight, hessian, sparsity, block))


@pytest.mark.parametrize("threshold", [False, True])
def test_a_share_of_one_removes_everything(threshold: bool) -> None:
    """An allocation may give a linear as much."""
    weight, hessian = problem()
    pruned, _ = solve(weight, hessian, 1.0, threshold=threshold)
    assert not pruned.any()


def by_the_paper(
    weight: torch.Tensor, hessian: torch.Tensor, sparsity: float | str, block: int
) -> torch.Tensor:
    """Algorithm 1 as it is written, one column after the other, in the whole matrix."""
    upper = torch.linalg.cholesky(torch.linalg.inv(damped(hessian)), upper=True)
    weight, gone = weight.clone(), torch.zeros_like(weight, dtype=torch.bool)
    of = int(sparsity.split(":")[1]) if isinstance(sparsity, str) else block
    for j in range(weight.shape[1]):
        if j % of == 0:  # choose the next group or block from the weights as they are now
            cost = weight[:, j : j + of] ** 2 / upper.diagonal()[j : j + of] ** 2
            gone[:, j : j + of] = lowest(cost, sparsity, group="matrix")
        error = weight[:, j] * gone[:, j] / upper[j, j]
        weight[:, j:] -= error[:, None] * upper[j, j:]
    return weight.masked_fill(gone, 0)


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8, "2:4", "1:4", "5:8"])
@pytest.mark.parametrize("block", [8, 40, 128])
def test_weights_are_those_of_the_papers_algorithm(sparsity: float | str, block: int) -> None:
    weight, hessian = problem(rows=9, features=160)
    pruned, _ = solve(weight, hessian, sparsity, block_size=block)
    expected = by_the_paper(weight, hessian, sparsity, block)
    assert torch.equal(pruned == 0, expected == 0)
    torch.testing.assert_close(pruned, expected)


def test_the_loss_of_a_layer_is_the_sum_over_its_groups() -> None:
    method = build()
    alone = []
    for layer, seed in ((2, 0), (2, 1), (3, 2)):
        weight, hessian = (each.float() for each in problem(seed=seed))
        one, stats = (
            build(),
            LinearStats(layer, "x", torch.Generator(), {"hessian": hessian.clone()}),
        )
        one.prune_group([weight.clone()], [stats])
        alone.append(one.losses[layer])
        method.prune_group([weight], [stats])
    assert min(alone) > 0
    assert method.losses == pytest.approx({2: alone[0] + alone[1], 3: alone[2]})


def test_damping_has_a_limit() -> None:
    assert build(damping=100.0).options.damping == 100
    with pytest.raises(ValueError, match="less than or equal to 100"):
        build(damping=100.5)


def test_an_update_that_overflows_is_named() -> None:
    """The second weight takes over what the first one did, and gets infinite."""
    weight = torch.tensor([[-3e38, -3e38]])
    hessian = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
    stats = LinearStats(1, "x", torch.Generator(), {"hessian": hessian})
    with pytest.raises(PrunebenchError, match=r"not finite after pruning \(damping 0\.01\)"):
        build(sparsity="1:2", mode="reference").prune_group([weight], [stats])


def test_a_cost_that_overflows_is_named_even_if_the_weight_stays() -> None:
    weight = torch.ones(4, 24)
    weight[2, 5] = 1e30  # its square is infinite in float32
    stats = LinearStats(2, "x", torch.Generator(), {"hessian": torch.eye(24)})
    with pytest.raises(PrunebenchError, match=r"^layer 2, x: the weights are not finite"):
        build(sparsity=0.5).prune_group([weight], [stats])


def test_inputs_that_are_always_zero_get_a_one_on_the_diagonal_before_damping() -> None:
    """As released: the ones count in the mean of the diagonal, and so change the damping."""
    weight, hessian = problem(rows=9, features=24)
    hessian /= hessian.diagonal().mean() * 10
    hessian[[3, 17]] = 0
    hessian[:, [3, 17]] = 0
    pruned = weight.clone()
    stats = LinearStats(0, "x", torch.Generator(), {"hessian": hessian.clone()})
    build(sparsity=0.5).prune_group([pruned], [stats])
    hessian[[3, 17], [3, 17]] = 1
    weight[:, [3, 17]] = 0
    torch.testing.assert_close(pruned, by_the_paper(weight, hessian, 0.5, 128))
