"""FLAP: its statistic, metric and choices by hand; the bias makes up for constant inputs."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from prunebench import Block, PrunebenchError, anatomy, load_pruned
from prunebench.model.checkpoint import save
from prunebench.model.decilm import save_decilm
from prunebench.plugin.host import load_plugins
from prunebench.testing import any_type, tiny_context
from prunebench_plugins.flap_choice import RELEASED_WEIGHT, Amount, chosen, released
from prunebench_plugins.flap_scores import (
    Fluctuation,
    ReleasedFluctuation,
    channel_metric,
    group_scores,
)
from prunebench_plugins.llm_pruner_groups import Pool
from tiny import tiny_model

FLAP = load_plugins()["method"]["flap"].value


def prune(model, **options: object):
    context = tiny_context(model)
    with torch.no_grad():
        FLAP(FLAP.Options.model_validate(options)).prune(model, context)
    return context


def inputs(seed: int = 0) -> torch.Tensor:
    """[windows, length, in]; a mean far from zero is where naive formulas lose digits."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, 7, 4, generator=generator) * torch.tensor([0.1, 1, 3, 0]) + 50


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.sampled_from([(1, 1, 1, 1, 1), (2, 3), (5,)]))
def test_the_variance_is_that_of_all_tokens_whatever_the_batches(
    seed: int, batches: tuple[int, ...]
) -> None:
    x = inputs(seed)
    statistic = Fluctuation(4, torch.device("cpu"))
    for batch in x.split(list(batches)):
        statistic.add(batch.flatten(0, 1), len(batch))
    mean, variance = statistic.result()
    tokens = x.flatten(0, 1).double()
    assert torch.allclose(mean.double(), tokens.mean(dim=0), rtol=1e-6)
    assert torch.allclose(variance.double(), tokens.var(dim=0, correction=0), rtol=1e-3, atol=1e-8)


def test_the_released_variance_takes_squares_around_the_new_mean() -> None:
    x = inputs()
    statistic = ReleasedFluctuation(4, torch.device("cpu"))
    statistic.add(x[:2].flatten(0, 1), 2)
    statistic.add(x[2:].flatten(0, 1), 3)
    mean, found = statistic.result()
    wanted, running = torch.zeros(4), torch.zeros(4)
    for number, window in enumerate(x):  # `number` windows were there before
        running = (running * number + window.mean(dim=0)) / (number + 1)
        if number:
            squares = (window - running).square().sum(dim=0) / (number + 1)
            wanted = wanted * (number - 1) / number + squares
    assert torch.allclose(mean, running)
    assert torch.allclose(found, wanted, rtol=1e-4)


def test_the_metric_of_attentions_is_squared(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(
        "prunebench_plugins.flap_inputs.channel_metric",
        lambda weight, *_: torch.full(weight.shape[1:], 3.0),
    )
    monkeypatch.setattr(
        "prunebench_plugins.flap.group_scores",
        lambda metric, groups, **_: seen.append(metric) or torch.arange(groups).double(),
    )
    prune(tiny_model("llama"), ratio=0.1)
    assert [set(metric.tolist()) for metric in seen] == [{9.0}, {3.0}] * 4


def test_metrics_of_a_channel() -> None:
    weight = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    fluctuation, norm = torch.tensor([2.0, 4.0]), torch.tensor([10.0, 1.0])
    found = {
        metric: channel_metric(weight, metric, fluctuation, norm).tolist()  # type: ignore[arg-type]
        for metric in ("IFV", "WIFV", "WIFN")
    }
    assert found == {"IFV": [2, 4], "WIFV": [20, 17], "WIFN": [20, 1.25]}


def test_scores_of_groups_are_sums_or_means_of_standardised_channels() -> None:
    metric = torch.tensor([1.0, 2.0, 3.0, 6.0])
    assert group_scores(metric, 2, standardised=False).tolist() == [3, 9]
    deviation = (14 / 3) ** 0.5  # of a sample
    wanted = [-1.5 / deviation, 1.5 / deviation]
    assert group_scores(metric, 2, standardised=True).tolist() == pytest.approx(wanted)
    assert group_scores(torch.ones(4), 2, standardised=True).tolist() == [0, 0]


def pools(layers: int = 2, heads: int = 4, channels: int = 12) -> list[Pool]:
    """Heads cost 50 parameters, MLP channels 3."""
    found = []
    for layer in range(layers):
        found.append(Pool(Block(layer, "attention"), heads, heads, 128, 50))
        found.append(Pool(Block(layer, "mlp"), channels, channels, 1, 3))
    return found


def drawn(seed: int, some: list[Pool]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(p.present, generator=generator, dtype=torch.float64) for p in some]


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.floats(0, 0.6))
def test_all_groups_compete_until_the_budget_is_spent(seed: int, ratio: float) -> None:
    some = pools()
    scores = drawn(seed, some)
    gone = chosen(some, scores, Amount("AL-AM", ratio, 0))
    free = []  # all but the best of each pool
    for index, score in enumerate(scores):
        best = int(score.argmax())
        assert not gone[index][best]
        free += [(float(s), index, g) for g, s in enumerate(score) if g != best]
    free.sort()
    count = sum(int(each.sum()) for each in gone)
    assert all(bool(gone[index][g]) == (place < count) for place, (_, index, g) in enumerate(free))
    spent = [0]
    for _, index, _ in free:
        spent.append(spent[-1] + some[index].cost)
    budget = ratio * sum(p.cost * p.present for p in some)
    assert abs(spent[count] - budget) == pytest.approx(min(abs(s - budget) for s in spent))


@pytest.mark.parametrize("structure", ["AL-MM", "UL-MM"])
def test_heads_go_by_number_and_channels_for_the_rest(structure: Any) -> None:
    some = pools()
    scores = drawn(1, some)
    gone = chosen(some, scores, Amount(structure, 0.25, 2))
    heads = [int(gone[index].sum()) for index in (0, 2)]
    assert sum(heads) == 2
    if structure == "UL-MM":
        assert heads == [1, 1]
        assert [int(gone[index].sum()) for index in (1, 3)] == [3, 3]
    removed = sum(p.cost * int(each.sum()) for p, each in zip(some, gone, strict=True))
    assert removed == pytest.approx(0.25 * 472, abs=3)


def test_every_block_loses_the_same_share() -> None:
    some = pools()
    scores = drawn(2, some)
    gone = chosen(some, scores, Amount("UL-UM", 0.5, 0))
    assert [int(each.sum()) for each in gone] == [2, 6, 2, 6]
    for score, each in zip(scores, gone, strict=True):
        assert score[each].max() < score[~each].min()


def released_pools() -> list[Pool]:
    """Heads of 128 channels in a model of 16."""
    return [
        Pool(pool.block, pool.initial, pool.present, 128, 4 * 128 * 16 if pool.channels > 1 else 48)
        for pool in pools(heads=4, channels=600)
    ]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 0.5))
def test_the_release_counts_a_head_as_170_channels(seed: int, ratio: float) -> None:
    some = released_pools()
    scores = drawn(seed, some)
    gone = released(some, scores, Amount("AL-AM", ratio, 0), 16)
    every = sorted(
        ((float(s), 170 if index % 2 == 0 else 1) for index, one in enumerate(scores) for s in one),
        reverse=True,
    )
    assert int(512 / 3) == RELEASED_WEIGHT
    total, kept, best = sum(weight for _, weight in every), 0, None
    for score, weight in every:
        kept += weight
        if best is None or abs(kept - total * (1 - ratio)) < best[0]:
            best = abs(kept - total * (1 - ratio)), score
    assert best is not None
    for score, each in zip(scores, gone, strict=True):
        assert each.equal(score <= best[1])


def test_other_structures_of_the_release() -> None:
    some = released_pools()
    scores = drawn(3, some)
    uniform = released(some, scores, Amount("UL-UM", 0.3, 0), 16)
    assert [int(each.sum()) for each in uniform] == [1, 180, 1, 180]
    manual = released(some, scores, Amount("UL-MM", 0.5, 2), 16)
    # (0.5 * (3 * 600 * 16 + 4 * 16^2) - 1 * 4 * 16 * 128) / (3 * 16)
    assert [int(each.sum()) for each in manual] == [1, 140, 1, 140]
    adaptive = released(some, scores, Amount("AL-MM", 0.5, 3), 16)
    assert int(adaptive[0].sum() + adaptive[2].sum()) == 3
    assert int(adaptive[1].sum() + adaptive[3].sum()) == int((29824 - 3 * 8192) / 48)
    with pytest.raises(PrunebenchError, match="the released code fails if 12 of 8 groups"):
        released(some, scores, Amount("AL-MM", 0.5, 13), 16)


@pytest.mark.parametrize("family", ["llama", "opt", "gpt_neox"])
def test_it_removes_whole_groups_and_their_mean_becomes_a_bias(family: str) -> None:
    model, dense = tiny_model(family), tiny_model(family)
    context = prune(model, ratio=0.4)
    parts, before = anatomy(model), anatomy(dense)
    means: dict[tuple[int, str], torch.Tensor] = {}
    seen = tiny_context(dense)
    seen.observe_linears(
        dense,
        {"input_mean"},
        lambda _, stats: means.update(
            {(each.layer, name): each.input_mean for name, each in stats.items()}
        ),
    )
    changed = 0
    for index, (layer, whole) in enumerate(zip(parts.layers, before.layers, strict=True)):
        for kind, name in (
            ("attention", parts.head_reader(layer)),
            ("mlp", parts.channel_reader(layer)),
        ):
            groups = before.groups(whole, kind)  # type: ignore[arg-type]
            kept = context.dense_indices.groups.get(Block(index, kind), range(groups))  # type: ignore[arg-type]
            linear, old = layer.get_submodule(name), whole.get_submodule(name)
            size = old.in_features // groups
            gone = torch.ones(groups, dtype=torch.bool)
            gone[list(kept)] = False
            channels = gone.repeat_interleave(size)
            assert linear.weight.equal(old.weight[:, ~channels])
            wanted = old.weight @ (means[index, name] * channels)
            if old.bias is not None:
                wanted = wanted + old.bias
            if linear.bias is not None:
                assert torch.allclose(linear.bias, wanted, atol=1e-5)
            assert (linear.bias is None) == (old.bias is None and not bool(gone.any()))
            changed += int(gone.any())
    assert changed == len(context.notes["biases"])


def test_heads_weigh_what_they_are() -> None:
    """Two query heads on each KV head: a group owns rows of q, k and v and columns of o."""
    model = tiny_model("llama")
    context = prune(model, ratio=0.3)
    linears = tiny_context(model).linears(model)
    weights = sum(linear.weight.numel() for linear in linears.values())
    dense = tiny_context(model).linears(tiny_model("llama"))
    whole = sum(linear.weight.numel() for linear in dense.values())
    channel = 3 * model.config.hidden_size
    assert abs(weights - 0.7 * whole) <= 4 * model.config.head_dim * model.config.hidden_size
    assert context.notes["groups_removed"]
    assert channel < whole


def test_a_constant_channel_is_replaced_exactly() -> None:
    """Channels that never change go first, and with the bias the outputs stay."""
    ids = torch.arange(8)[None]
    found = {}
    for bias in (True, False):
        model = tiny_model("opt", activation_function="gelu")
        # Half of the channels do not depend on the input.
        for layer in model.model.decoder.layers:
            layer.fc1.weight[:40] = 0
            layer.fc1.bias[:40] = 1.5
        dense = model(ids).logits
        context = prune(model, structure="UL-MM", remove_heads=0, ratio=0.2, bias=bias)
        assert sum(context.notes["groups_removed"].values()) > 40
        for index in range(4):
            block = Block(index, "mlp")
            gone = set(range(80)) - set(context.dense_indices.groups.get(block, range(80)))
            assert gone <= set(range(40))
        found[bias] = float((model(ids).logits - dense).abs().max())
    assert found[True] < 1e-4
    assert found[False] > 1e-2


def test_added_biases_are_saved_and_loaded(tmp_path) -> None:
    model = tiny_model("llama")
    prune(model, ratio=0.3)
    ids = torch.arange(12)[None]
    save(model, None, tmp_path / "pruned", made_by={})
    saved = json.loads((tmp_path / "pruned" / "pruning.json").read_text())
    assert not saved["plain"]
    assert "model.layers.0.mlp.down_proj" in saved["biases"]
    loaded = load_pruned(tmp_path / "pruned")
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert not any(p.requires_grad for p in loaded.parameters())
    with pytest.raises(PrunebenchError, match="got a bias by pruning"):
        save_decilm(model, None, tmp_path / "decilm")


def test_a_bias_of_the_wrong_size_changes_nothing() -> None:
    model = tiny_model("llama")
    context = tiny_context(model)
    path = "model.layers.0.mlp.down_proj"
    hidden = model.config.hidden_size
    with pytest.raises(PrunebenchError, match=rf"{path}: a bias of shape \[3\] for {hidden}"):
        context.add_biases(
            model, {"model.layers.0.mlp.up_proj": torch.ones(80), path: torch.ones(3)}
        )
    assert model.get_submodule("model.layers.0.mlp.up_proj").bias is None


def test_the_reference_refuses_other_heads() -> None:
    with pytest.raises(PrunebenchError, match="takes heads of 128 channels"):
        prune(tiny_model("llama"), mode="reference")


def test_target_parameters_is_a_share_of_the_whole_model() -> None:
    model = tiny_model("llama")
    whole = sum(parameter.numel() for parameter in model.parameters())
    prune(model, target_parameters=0.2, bias=False)
    left = sum(parameter.numel() for parameter in model.parameters())
    assert 1 - left / whole == pytest.approx(0.2, abs=0.02)
    with pytest.raises(PrunebenchError, match="fewer than the 99%"):
        prune(tiny_model("llama"), target_parameters=0.99)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ratio": 0.2, "target_parameters": 0.2}, "not both"),
        ({"metrics": "WIF"}, "'WIFV', 'IFV' or 'WIFN'"),
        ({"ratio": 1.0}, "less than 1"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        FLAP.Options.model_validate(options)


@pytest.mark.parametrize("metrics", ["IFV", "WIFN"])
def test_other_metrics_prune_too(metrics: str) -> None:
    context = prune(tiny_model("llama"), metrics=metrics, ratio=0.3)
    assert context.notes["parameters_removed"] > 0.1
    assert FLAP.Options(remove_heads=3).without_effect().keys() == {"remove_heads"}


@pytest.mark.parametrize("name", ["flap", "llm-pruner"])
def test_attentions_and_mlps_that_cannot_lose_groups_are_noted(name: str) -> None:
    model = any_type.tiny_model("deepseek_v3")  # its last three layers hold experts
    kind, context = load_plugins()["method"][name].value, tiny_context(model)
    with torch.no_grad():
        kind(kind.Options(ratio=0.25)).prune(model, context)
    among = {"flap": 8, "llm-pruner": 6}[name]  # LLM-Pruner leaves the first layer as it is
    assert context.notes["uncut"] == (
        f"3 of {among} attentions and MLPs stay as they are; layer 1:"
        " mlp holds experts, whose channels cannot be removed"
    )
    assert "3.mlp" not in context.notes["groups_removed"]
    plain = tiny_context(tiny_model("llama"))
    with torch.no_grad():
        kind(kind.Options(ratio=0.25)).prune(tiny_model("llama"), plain)
    assert "uncut" not in plain.notes
