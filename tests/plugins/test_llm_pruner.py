"""LLM-Pruner: removing equals masking, counts are the published ones, bad input changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunebench import Block, Context, Method, PrunebenchError, anatomy
from prunebench.plugin.host import load_plugins
from prunebench_plugins import llm_pruner as llm_pruner_module
from prunebench_plugins.llm_pruner_groups import Pool, global_counts, local_counts, ratio_for
from tiny import FAMILIES, tiny_model

IDS = torch.randint(0, 320, (5, 24), generator=torch.Generator().manual_seed(2))
GROUPED = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "phi",
)  # the tiny ones with two query heads per KV head


def llm_pruner(**options: object) -> Method:
    cls = load_plugins()["method"]["llm-pruner"].value
    return cls(cls.Options.model_validate(options))


def prune(model, tokens: torch.Tensor = IDS, **options: object) -> Context:
    context = Context(tokens, 0, list(range(len(anatomy(model).layers))))
    with torch.no_grad():
        llm_pruner(**options).prune(model, context)
    return context


def recorded(monkeypatch) -> dict[Block, list[int]]:
    """Record what `keep_groups` is asked to keep from now on."""
    kept: dict[Block, list[int]] = {}
    original = Context.keep_groups

    def spy(self, model, groups):
        kept.update({block: list(stay) for block, stay in groups.items()})
        original(self, model, groups)

    monkeypatch.setattr(Context, "keep_groups", spy)
    return kept


def mask(model, block: Block, kept: list[int]) -> None:
    """Zero the columns with which the removed groups write to the residual stream."""
    parts = anatomy(model)
    layer = parts.layers[block.layer]
    out = layer.get_submodule(parts.cuts(layer, block.kind)[-1].linear)
    groups = parts.groups(layer, block.kind)
    gone = torch.ones(groups, dtype=torch.bool)
    gone[kept] = False
    with torch.no_grad():
        out.weight[:, gone.repeat_interleave(out.in_features // groups)] = 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "options", [{}, {"taylor": "param_mix", "global_pruning": True}, {"importance": "random"}]
)
def test_sliced_equals_masked(
    family: str, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family)
    masked, kept = copy.deepcopy(model), recorded(monkeypatch)
    prune(model, ratio=0.5, **options)
    assert {block.kind for block in kept} >= {"mlp"}
    for block, groups in kept.items():
        mask(masked, block, groups)
    torch.testing.assert_close(model(IDS).logits, masked(IDS).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_half_of_each_unprotected_block_is_removed_and_the_rest_is_bit_identical(
    family: str,
) -> None:
    model = tiny_model(family, num_hidden_layers=8)
    dense = copy.deepcopy(model)
    context = prune(model, ratio=0.5)
    ours, before = anatomy(model), anatomy(dense)
    for index, (layer, whole) in enumerate(zip(ours.layers, before.layers, strict=True)):
        if index in range(2, 7):  # of 8 layers the first 2 and the last are protected
            heads = before.groups(whole, "attention")
            assert ours.groups(layer, "attention") == heads // 2
            assert ours.groups(layer, "mlp") == 40
            name = before.cuts(whole, "attention")[-1].linear
            per_group = whole.get_submodule(name).in_features // heads
            assert (
                layer.get_submodule(name).in_features == per_group * heads // 2
            )  # query heads per KV head stay
            # The norms and what is written to the residual stay.
            assert layer.get_submodule(name).out_features == 48
        else:
            for name, tensor in whole.state_dict().items():
                assert torch.equal(layer.state_dict()[name], tensor)
    for name, tensor in dense.state_dict().items():
        if ".layers." not in name:
            assert torch.equal(model.state_dict()[name], tensor)
    removed = sum(p.numel() for p in dense.parameters()) - sum(
        p.numel() for p in model.parameters()
    )
    share = removed / sum(p.numel() for p in dense.parameters())
    assert context.notes["parameters_removed"] == pytest.approx(share, abs=1e-12)


def released_count(ratio: float, attentions: range, mlps: range) -> int:
    """Parameters of the tiny Llama that are left, by plain arithmetic and the released rule.

    48 hidden channels, 2 KV heads of 12 channels with 2 query heads each, 80 MLP channels, 8
    layers.
    """
    total = 320 * 48 + 48  # tied embeddings and the last norm
    for layer in range(8):
        heads = (2 * 12 - int(2 * 12 * (1 - ratio))) // 12 if layer in attentions else 0
        channels = 80 - int(80 * (1 - ratio)) if layer in mlps else 0
        attention = (2 + 2 + 1 + 1) * 12 * 48 * (2 - heads)  # q and o have two heads for each KV
        total += 2 * 48 + attention + 3 * 48 * (80 - channels)
    return total


@pytest.mark.parametrize(
    ("options", "attentions", "mlps"),
    [
        ({}, range(2, 7), range(2, 7)),
        ({"attention_layers": [1, 5], "mlp_layers": [3, 8]}, range(1, 5), range(3, 8)),
        ({"attention_layers": [0, 0], "mlp_layers": [None, -2]}, range(0), range(6)),
        ({"attention_layers": [5, None]}, range(5, 8), range(2, 7)),
        ({"mlp_layers": [-3, -1], "protect_first": 3}, range(3, 7), range(5, 7)),
        ({"mlp_layers": [4, 100], "protect_first": 0, "protect_last": 0}, range(8), range(4, 8)),
    ],
    ids=str,
)
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.6])
def test_attentions_and_mlps_have_their_own_ranges_of_layers(
    options: dict[str, object], attentions: range, mlps: range, ratio: float
) -> None:
    model = tiny_model("llama", num_hidden_layers=8)
    assert sum(p.numel() for p in model.parameters()) == released_count(0, range(8), range(8))
    context = prune(model, ratio=ratio, importance="l2", **options)
    left = sum(p.numel() for p in model.parameters())
    assert left == released_count(ratio, attentions, mlps)
    removed = context.notes["groups_removed"]
    assert set(removed) == {f"{layer}.attention" for layer in attentions} | {
        f"{layer}.mlp" for layer in mlps
    }


def test_layer_granularity_keeps_the_first_layers_bit_for_bit() -> None:
    model = tiny_model("llama", num_hidden_layers=8)
    dense = copy.deepcopy(model)
    cls = load_plugins()["method"]["llm-pruner"].value
    options = cls.Options(granularity="layer", keep_layers=3)
    assert not cls.needs_calibration_for(options)
    assert not cls.uses_seed_for(options)
    context = Context(None, 0, list(range(8)))
    cls(options).prune(model, context)
    assert context.kept_layers == [0, 1, 2]
    assert model.config.num_hidden_layers == 3
    left = sum(p.numel() for p in model.parameters())
    assert left == released_count(0, range(0), range(0)) - 5 * (2 * 48 + 6 * 24 * 48 + 3 * 48 * 80)
    dense.model.layers = dense.model.layers[:3]  # what the released code does
    assert torch.equal(model(IDS).logits, dense(IDS, use_cache=False).logits)


def test_layer_granularity_keeps_twelve_layers_as_released_and_says_if_there_are_fewer() -> None:
    deep = tiny_model("llama", num_hidden_layers=13)
    context = Context(None, 0, list(range(13)))
    llm_pruner(granularity="layer").prune(deep, context)
    assert len(context.kept_layers) == 12
    with pytest.raises(PrunebenchError, match="12 layers are to stay and the model has 4"):
        prune(tiny_model("llama"), granularity="layer")


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"granularity": "layer", "ratio": 0.5}, "ratio"),
        ({"granularity": "layer", "importance": "l2"}, "importance"),
        ({"granularity": "layer", "iterative_steps": 2}, "iterative_steps"),
        ({"granularity": "channel", "mlp_layers": [0, 2]}, "mlp_layers"),
        ({"keep_layers": 3}, "keep_layers"),
        (
            {"attention_layers": [0, 2], "mlp_layers": [0, 2], "protect_first": 1},
            "protect_first",
        ),
    ],
)
def test_options_that_another_one_makes_useless_are_named(
    options: dict[str, object], name: str
) -> None:
    assert name in llm_pruner(**options).options.without_effect()
    one_range = llm_pruner(attention_layers=[0, 2], protect_first=1)
    assert "protect_first" not in one_range.options.without_effect()


@pytest.mark.parametrize("steps", [2, 3, 5])
@pytest.mark.parametrize("options", [{"ratio": 0.6}, {"target_parameters": 0.3}])
def test_steps_reach_the_counts_of_one(steps: int, options: dict[str, object]) -> None:
    once = prune(tiny_model("opt"), **options).notes
    several = prune(tiny_model("opt"), iterative_steps=steps, **options).notes
    assert several["groups_removed"] == once["groups_removed"]
    assert several["parameters_removed"] == once["parameters_removed"]
    assert any(once["groups_removed"].values())


@pytest.mark.parametrize(
    ("family", "reduction", "taylor"),
    [
        ("opt", "mean", "vectorize"),
        ("opt", "max", "param_first"),
        ("opt", "prod", "param_second"),
        ("gpt_neox", "sum", "param_mix"),
        ("gpt_neox", "max", "vectorize"),
        ("gpt_neox", "prod", "param_first"),
    ],
)
def test_modes_agree_if_each_query_head_has_its_own_keys(
    family: str, reduction: str, taylor: str
) -> None:
    options = {"ratio": 0.5, "reduction": reduction, "taylor": taylor, "protect_first": 2}
    clean, reference = tiny_model(family), tiny_model(family)
    prune(clean, mode="clean", **options)
    prune(reference, mode="reference", **options)
    assert torch.equal(clean(IDS).logits, reference(IDS).logits)


@pytest.mark.parametrize("family", GROUPED)
def test_a_kv_group_whose_query_heads_do_nothing_goes_first(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three KV heads, two query heads each; the released code adds heads 1 and 4 to KV head 1."""
    model = tiny_model(family, num_attention_heads=6, num_key_value_heads=3, hidden_size=48)
    parts = anatomy(model)
    for layer in parts.layers:
        query, out = (
            layer.get_submodule(parts.cuts(layer, "attention")[place].linear) for place in (0, -1)
        )
        size = 2 * parts.head_dim(layer)
        for linear, rows in ((query, query.weight), (out, out.weight.t())):
            rows.data[size : 2 * size] = 0
            if linear is query and linear.bias is not None:
                linear.bias.data[size : 2 * size] = 0
        # The query heads that the released code takes for those of KV head 1 are strong, 0 and 5
        # are weak.
        for head, gain in ((0, 0.1), (1, 3), (4, 3), (5, 0.1)):
            out.weight.data[:, head * size // 2 : (head + 1) * size // 2] *= gain
    kept = recorded(monkeypatch)
    prune(copy.deepcopy(model), ratio=0.4, importance="l2")
    assert [kept[Block(layer, "attention")] for layer in (1, 2, 3)] == [[0, 2]] * 3
    prune(copy.deepcopy(model), ratio=0.4, importance="l2", mode="reference")
    assert all(1 in kept[Block(layer, "attention")] for layer in (1, 2, 3))
    prune(model, ratio=0.4)
    assert [kept[Block(layer, "attention")] for layer in (1, 2, 3)] == [[0, 2]] * 3


@pytest.mark.parametrize("taylor", ["param_first", "param_mix"])
def test_channels_whose_removal_changes_nothing_go_first(
    taylor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, kept = tiny_model("llama"), recorded(monkeypatch)
    for layer in anatomy(model).layers:
        for linear in (layer.mlp.up_proj, layer.mlp.gate_proj):
            linear.weight.data[10:50] = 0
    before = model(IDS).logits
    prune(model, ratio=0.5, taylor=taylor, protect_first=0)
    stays = [*range(10), *range(50, 80)]
    assert all(kept[Block(layer, "mlp")] == stays for layer in range(4))
    assert not torch.equal(model(IDS).logits, before)  # attention lost a group


@pytest.mark.parametrize("family", FAMILIES)
def test_channel_granularity_narrows_the_residual_stream(family: str) -> None:
    model = tiny_model(family)
    options = {"granularity": "channel", "ratio": 0.25}
    if family == "gemma":
        with pytest.raises(
            PrunebenchError, match="residual channels of this gemma model cannot be removed"
        ):
            prune(model, **options)
        return
    before = sum(p.numel() for p in model.parameters())
    context = prune(model, **options)
    assert anatomy(model).embeddings.weight.shape[1] == 36
    assert context.notes["groups_removed"] == {"residual channels": 12}
    left = sum(p.numel() for p in model.parameters())
    assert context.notes["parameters_removed"] == pytest.approx(1 - left / before, abs=1e-12)
    assert torch.isfinite(model(IDS).logits).all()


def test_a_dead_residual_channel_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    asked: list[list[int]] = []
    monkeypatch.setattr(Context, "keep_hidden", lambda self, model, kept: asked.append(list(kept)))
    with torch.no_grad():
        model.model.embed_tokens.weight[:, [7, 30]] = 0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[[7, 30]] = 0
            layer.mlp.down_proj.weight[[7, 30]] = 0
    prune(model, granularity="channel", ratio=2 / 48)
    assert asked == [[index for index in range(48) if index not in {7, 30}]]


@settings(max_examples=15)
@given(target=st.floats(0, 0.25), ranked=st.booleans(), steps=st.integers(1, 2))
def test_a_parameter_target_is_met_as_closely_as_one_more_group_allows(
    target: float, ranked: bool, steps: int
) -> None:
    model = tiny_model("opt")
    total = sum(p.numel() for p in model.parameters())
    options = {"importance": "l2", "global_pruning": ranked, "iterative_steps": steps}
    notes = prune(model, target_parameters=target, **options).notes
    share = 1 - sum(p.numel() for p in model.parameters()) / total
    assert notes["parameters_removed"] == pytest.approx(share, abs=1e-12)
    # One more of every group of the three unprotected layers, or of the widest group alone.
    head, channel = 4 * 12 * 48 + 36, 2 * 48 + 1
    step = head if ranked else 3 * (head + channel)
    assert abs(share - target) <= step / total
    assert notes["target_parameters"] == f"reached from {'below' if share <= target else 'above'}"


def test_global_ranking_takes_the_exact_number_and_leaves_one_group_in_each_block() -> None:
    model = tiny_model("opt")
    layer = anatomy(model).layers[1]
    for linear in (layer.fc1, layer.fc2):
        linear.weight.data *= 1e-3  # this MLP would lose everything
    notes = prune(model, importance="l1", ratio=0.6, global_pruning=True).notes
    removed = notes["groups_removed"]
    assert sum(removed.values()) == 3 * 84 - int(3 * 84 * 0.4)
    assert removed["1.mlp"] == 79
    assert anatomy(model).groups(layer, "mlp") == 1


def test_global_ranking_in_reference_mode_spares_a_block_that_would_be_emptied() -> None:
    model = tiny_model("opt")
    layer = anatomy(model).layers[1]
    for linear in (layer.fc1, layer.fc2):
        linear.weight.data *= 1e-3
    removed = prune(model, importance="l1", ratio=0.6, global_pruning=True, mode="reference").notes[
        "groups_removed"
    ]
    assert removed["1.mlp"] == 0
    assert sum(removed.values()) == 3 * 84 - int(3 * 84 * 0.4) - 80


def test_global_ties_all_go_in_reference_mode_only() -> None:
    def tied():
        model = tiny_model("opt")
        for layer in list(anatomy(model).layers)[1:]:
            layer.fc1.weight.data[:20] = layer.fc2.weight.data[:, :20] = 0
        return model

    options = {"importance": "l1", "ratio": 0.1, "global_pruning": True}
    assert sum(prune(tied(), **options).notes["groups_removed"].values()) == 26
    assert sum(prune(tied(), mode="reference", **options).notes["groups_removed"].values()) == 60


def test_random_follows_the_seed() -> None:
    def logits(seed: int) -> torch.Tensor:
        model = tiny_model("llama")
        context = Context(None, seed, list(range(4)))
        llm_pruner(importance="random", ratio=0.5).prune(model, context)
        return model(IDS).logits

    assert torch.equal(logits(1), logits(1))
    assert not torch.equal(logits(1), logits(2))


def test_a_ratio_too_small_for_a_kv_group_warns_and_prunes_the_mlps() -> None:
    notes = prune(tiny_model("llama"), ratio=0.3).notes
    assert (
        notes["attention"] == "no KV group was removed: a ratio of 0.3 takes none of 2 in a layer"
    )
    assert notes["groups_removed"] == {
        f"{layer}.{kind}": count
        for layer in (1, 2, 3)
        for kind, count in (("attention", 0), ("mlp", 24))
    }


def test_removed_blocks_are_skipped() -> None:
    model = tiny_model("llama")
    context = Context(IDS, 0, list(range(4)))
    context.remove_blocks(model, [Block(1, "attention"), Block(2, "mlp")])
    notes = prune(model, ratio=0.5).notes
    assert set(notes["groups_removed"]) == {"1.mlp", "2.attention", "3.attention", "3.mlp"}


def test_no_hooks_or_gradients_are_left_on_the_model() -> None:
    model = tiny_model("llama", attention_dropout=0.3)
    model.train()
    frozen = model.model.layers[0].mlp.up_proj.weight
    frozen.requires_grad = True
    asked = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    prune(model, ratio=0.5)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == asked
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    with torch.enable_grad():  # no hook takes gradients away any more
        model(IDS).logits.sum().backward()
    assert frozen.grad is not None


@pytest.mark.parametrize("taylor", ["param_first", "param_mix"])
def test_a_broken_model_is_named_and_not_changed(taylor: str) -> None:
    model = tiny_model("llama")
    model.model.layers[2].mlp.up_proj.weight.data[3, 4] = float("nan")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(
        PrunebenchError, match=r"loss .* not finite, and model.layers.2.mlp.up_proj.weight holds"
    ):
        prune(model, ratio=0.5, taylor=taylor)
    assert all(
        torch.equal(tensor, before[name]) or "2.mlp.up" in name
        for name, tensor in model.state_dict().items()
    )
    assert all(
        parameter.grad is None and not parameter.requires_grad for parameter in model.parameters()
    )
    with pytest.raises(PrunebenchError, match=r"layer 2, mlp.up_proj: its weights are not finite"):
        prune(model, ratio=0.5, importance="l2")


def test_a_gradient_that_overflows_is_named() -> None:
    """A gate of zero hides huge weights from the loss but not from the gradient."""
    model = tiny_model("llama")
    layer = model.model.layers[2]
    layer.mlp.gate_proj.weight.data[5] = 0
    layer.mlp.down_proj.weight.data[:, 5] = 3e38
    layer.mlp.up_proj.weight.data[5] = 1e30
    with pytest.raises(
        PrunebenchError, match=r"layer 2, mlp\.(gate|up)_proj: its gradient is not finite"
    ):
        prune(model, ratio=0.5)
    assert model.model.layers[1].mlp.up_proj.out_features == 80


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ratio": 0.999}, "layer 1, KV groups: a ratio of 0.999 would remove all 2"),
        ({"target_parameters": 0.9}, r"layer 1, KV groups: a ratio of \S+ would remove all 2"),
        (
            {"ratio": 0.999, "global_pruning": True},
            "layer 1, KV groups: a ratio of 0.999 would remove all 2",
        ),
        (
            {"granularity": "channel", "ratio": 0.999},
            "residual channels: a ratio of 0.999 would remove all 48",
        ),
        ({"protect_first": 2, "protect_last": 2}, "all 4 layers are protected"),
    ],
)
def test_impossible_requests_say_so_and_change_nothing(
    options: dict[str, object], said: str
) -> None:
    model = tiny_model("llama")
    before = model(IDS).logits
    with pytest.raises(PrunebenchError, match=said):
        prune(model, **options)
    assert torch.equal(model(IDS).logits, before)


def test_windows_of_one_token_are_refused() -> None:
    with pytest.raises(PrunebenchError, match="one token"):
        prune(tiny_model("llama"), IDS[:, :1])


@pytest.mark.parametrize(
    "options",
    [
        {"ratio": 0.2, "target_parameters": 0.2},
        {"granularity": "channel", "taylor": "param_mix"},
        {"granularity": "channel", "global_pruning": True},
        {"ratio": 1.0},
        {"iterative_steps": 0},
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"`ratio` or|channel|less than 1|greater than or equal"):
        llm_pruner(**options)


def test_every_step_scores_other_windows_as_the_released_code_does(monkeypatch) -> None:
    others = torch.randint(0, 320, (3, 5, 24), generator=torch.Generator().manual_seed(3))
    seen: list[torch.Tensor] = []
    original = llm_pruner_module.taylor_vectors

    def spy(model, wanted, windows, *rest, **named):
        seen.append(windows)
        return original(model, wanted, windows, *rest, **named)

    monkeypatch.setattr(llm_pruner_module, "taylor_vectors", spy)

    def windows_of(**options: object) -> list[torch.Tensor]:
        seen.clear()
        model = tiny_model("llama")
        drawn = Context(IDS, 0, list(range(4)), draw=lambda number: others[number - 1])
        with torch.no_grad():
            llm_pruner(ratio=0.5, iterative_steps=3, **options).prune(model, drawn)
        return list(seen)

    assert all(map(torch.equal, windows_of(), [IDS, others[0], others[1]]))
    assert all(map(torch.equal, windows_of(fresh_windows=False), [IDS, IDS, IDS]))


def test_too_little_text_for_all_steps_is_refused_before_the_first_one() -> None:
    def draw(number: int) -> torch.Tensor:
        raise PrunebenchError(f"too little text for sample {number}")

    model, before = tiny_model("llama"), tiny_model("llama")
    context = Context(IDS, 0, list(range(4)), draw=draw)
    with pytest.raises(
        PrunebenchError, match=r"^3 steps .*: too little text for sample 2"
    ) as caught:
        llm_pruner(ratio=0.5, iterative_steps=3).prune(model, context)
    assert "fresh_windows: false" in caught.value.hint
    assert all(map(torch.equal, model.parameters(), before.parameters()))


def test_windows_that_were_given_as_tokens_are_the_same_in_every_step() -> None:
    context = prune(tiny_model("llama"), ratio=0.5, iterative_steps=2)
    assert context.notes["windows"].startswith("the same in every step")
    assert "windows" not in prune(tiny_model("llama"), ratio=0.5).notes


def test_only_cells_of_several_steps_have_new_ids() -> None:
    options = load_plugins()["method"]["llm-pruner"].value.Options
    for same in ({}, {"iterative_steps": 1}, {"iterative_steps": 3, "importance": "l2"}):
        assert options.model_validate(same).fresh_windows is None
    assert options(iterative_steps=3).fresh_windows is True
    assert options(iterative_steps=3, fresh_windows=False).fresh_windows is False
    assert "fresh_windows" in options(fresh_windows=True).without_effect()
    assert "fresh_windows" not in options(iterative_steps=3).without_effect()


def test_a_ratio_for_a_number_of_parameters_is_the_largest_that_removes_so_many() -> None:
    pool = Pool(Block(0, "mlp"), 80, 80, 1, 10)
    take = local_counts([pool])
    for groups in (0, 1, 20, 78):
        assert ratio_for(10 * groups, [pool], take) == pytest.approx(groups / 80)
        assert ratio_for(10 * groups + 4, [pool], take) == pytest.approx(groups / 80)
        assert take(ratio_for(10 * groups + 6, [pool], take)) == [groups + 1]


def test_all_layers_may_stay() -> None:
    model = tiny_model("llama")
    assert prune(model, granularity="layer", keep_layers=4).kept_layers == [0, 1, 2, 3]
    with pytest.raises(PrunebenchError, match="5 layers are to stay and the model has 4"):
        prune(model, granularity="layer", keep_layers=5)


def test_a_quarter_of_the_groups_goes_if_nothing_is_said() -> None:
    options = {"importance": "l2"}
    usual = prune(tiny_model("opt"), **options).notes
    assert (
        usual["groups_removed"]
        == prune(tiny_model("opt"), ratio=0.25, **options).notes["groups_removed"]
    )
    assert usual["ratio"] == 0.25


@pytest.mark.parametrize(
    ("depth", "kept"),
    [(32, range(4, 30)), (16, range(4, 14)), (12, range(3, 11)), (4, range(1, 4)), (1, range(1))],
)
def test_the_first_four_and_the_last_two_layers_are_protected(depth: int, kept: range) -> None:
    options = llm_pruner().options
    assert options.layers(depth, "attention") == options.layers(depth, "mlp") == kept


@pytest.mark.parametrize(
    ("options", "reduction"),
    [({}, "sum"), ({"importance": "l1"}, "mean"), ({"importance": "l2"}, "mean")],
)
def test_members_are_combined_as_released(options: dict[str, object], reduction: str) -> None:
    assert llm_pruner(**options).options.reduce() == reduction
    assert llm_pruner(reduction="max", **options).options.reduce() == "max"


def test_the_best_group_of_each_pool_stays_in_a_global_ranking() -> None:
    pools = [Pool(Block(layer, "mlp"), 3, 3, 1, 10) for layer in range(3)]
    scores = [torch.tensor(each) for each in ([0.0, 2, 1], [12.0, 10, 11], [5.0, 3, 4])]
    take = global_counts(pools, scores, released=False)
    assert [take(removed / 9) for removed in range(8)] == [
        [0, 0, 0],
        [1, 0, 0],
        [2, 0, 0],
        [2, 0, 1],
        [2, 0, 2],
        [2, 1, 2],
        [2, 2, 2],
        [3, 3, 3],  # more than can go: refused by the caller
    ]
    released = global_counts(pools, scores, released=True)
    assert released(3 / 9) == [0, 0, 0]  # not all of the first pool
    assert released(5 / 9) == [0, 0, 2]


def test_norms_are_averaged_over_the_members_of_a_group() -> None:
    """It matters in a global ranking: an attention has four members and an MLP two.

    A head has twelve times as many weights for each member; here they are small. Its sum is 1.5
    times that of a channel, and its mean 0.75 times.
    """
    options = {"importance": "l2", "global_pruning": True, "ratio": 0.3, "protect_first": 0}

    def removed(**more: object) -> dict[str, int]:
        model = tiny_model("opt")
        for layer in anatomy(model).layers:
            for linear in layer.self_attn.children():
                linear.weight.data *= 0.25
        return prune(model, **options, **more).notes["groups_removed"]

    assert removed() == removed(reduction="mean") != removed(reduction="sum")


@pytest.mark.parametrize(("importance", "gone"), [("l1", 3), ("l2", 5)])
def test_l1_and_l2_are_sums_of_powers(
    importance: str, gone: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One weight of 9 in channel 3 is less than many of 0.6 in channel 5, but its square is more."""
    model, kept = tiny_model("opt"), recorded(monkeypatch)
    for layer in anatomy(model).layers:
        for weight in (layer.fc1.weight, layer.fc2.weight.t()):
            weight.data.fill_(1)
            weight.data[3] = 0
            weight.data[5] = 0.6
        layer.fc1.weight.data[3, 7] = 9
    prune(model, importance=importance, ratio=1 / 80)
    assert kept[Block(2, "mlp")] == [channel for channel in range(80) if channel != gone]


@pytest.mark.parametrize(("mode", "draws"), [("clean", 1), ("reference", 12)])
def test_random_scores_are_drawn_for_each_channel_as_released(mode: str, draws: int) -> None:
    pools = [Pool(Block(0, "attention"), 4, 4, 12, 1), Pool(Block(0, "mlp"), 80, 80, 1, 1)]
    context = Context(None, 3, [0])
    found = llm_pruner(importance="random", mode=mode)._scores(None, pools, context, 0)
    generator = torch.Generator().manual_seed(3)
    expected = [torch.rand(4, draws, generator=generator), torch.rand(80, 1, generator=generator)]
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs.double().sum(1))


def test_the_best_groups_are_counted_from_the_first_of_their_pool() -> None:
    pools = [Pool(Block(layer, "mlp"), 2, 2, 1, 10) for layer in range(3)]
    scores = [torch.tensor(each) for each in ([100.0, 0], [60.0, 50], [70.0, 1])]
    take = global_counts(pools, scores, released=False)
    assert [take(removed / 6) for removed in range(4)] == [
        [0, 0, 0],
        [1, 0, 0],
        [1, 0, 1],
        [1, 1, 1],
    ]
