"""Budgeted search: an exact choice, costs and sizes that are those of the model that it makes."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import report_builder as build
from prunebench import Block, PrunebenchError, anatomy
from prunebench.layerwise.partial_forward import PartialForward
from prunebench.plugin.api.report_section import Folded, ReportData
from prunebench.plugin.host import load_plugins
from prunebench.testing import any_type, tiny_context
from prunebench_plugins.budget_knapsack import Option, choose
from prunebench_plugins.budget_quality import Trials
from prunebench_plugins.budget_report import BudgetPredictions
from prunebench_plugins.budget_sizes import Tokens, memory, memory_of, parameters, parameters_of
from prunebench_plugins.budget_variants import Item, Widths, items_of, make
from tiny import tiny_model

KIND = load_plugins()["method"]["budget-search"].value
SEEDS = st.integers(0, 10**6)


def prune(model, **options: object):
    context = tiny_context(model)
    with torch.no_grad():
        KIND(KIND.Options.model_validate(options)).prune(model, context)
    return context


def best(items: list[list[Option]], budget: int) -> float:
    """The least cost of all choices that fit; infinity if none does."""
    fitting = (
        math.fsum(option.cost for option in choice)
        for choice in itertools.product(*items)
        if sum(option.size for option in choice) <= budget
    )
    return min(fitting, default=math.inf)


def taken(items: list[list[Option]], budget: int, resolution: int) -> list[Option] | None:
    found = choose(items, budget, resolution)
    return found and [item[index] for item, index in zip(items, found, strict=True)]


def drawn(seed: int, items: int, largest: int) -> tuple[list[list[Option]], int]:
    """Items whose larger options tend to cost less, and a budget between too little and plenty."""
    draw = random.Random(seed)
    found = []
    for _ in range(items):
        sizes = [draw.randint(0, largest) for _ in range(draw.randint(2, 4))]
        found.append([Option(draw.randint(-5, 15) - 20 * size / largest, size) for size in sizes])
    least, most = (sum(f(o.size for o in item) for item in found) for f in (min, max))
    return found, draw.randint(max(0, least - 1), most)


@settings(max_examples=60)
@given(SEEDS, st.integers(1, 5))
def test_the_choice_is_the_best_of_all_and_fits(seed: int, number: int) -> None:
    items, budget = drawn(seed, number, 12)
    found = taken(items, budget, 1000)
    least = best(items, budget)
    assert (found is None) == math.isinf(least)
    if found is not None:
        assert sum(option.size for option in found) <= budget
        assert sum(option.cost for option in found) == pytest.approx(least, abs=1e-9)
        larger = taken(items, budget + 3, 1000)
        assert larger is not None
        assert sum(option.cost for option in larger) <= least + 1e-9


@settings(max_examples=60)
@given(SEEDS, st.integers(3, 5), st.integers(1, 3))
def test_a_coarse_choice_fits_and_is_as_good_as_resolution_promises(
    seed: int, number: int, resolution: int
) -> None:
    items, budget = drawn(seed, number, 1000)
    found = taken(items, budget, resolution)
    assert (found is None) == math.isinf(best(items, budget))
    if found is not None:
        assert sum(option.size for option in found) <= budget
        promised = best(items, budget - math.ceil(budget / resolution))
        assert sum(option.cost for option in found) <= promised + 1e-9


def test_many_items_are_chosen_nearly_as_well_with_few_states() -> None:
    """Of 13 items; there are thousands of choices that no other beats, and 65 of them are kept."""
    draw = random.Random(3)
    items = [
        [Option(0.0, size := draw.randint(5000, 9000)), Option(size * draw.uniform(0.8, 1.2), 0)]
        for _ in range(13)
    ]
    budget = sum(item[0].size for item in items) // 2
    found = taken(items, budget, 5)
    assert found is not None
    cost = sum(option.cost for option in found)
    assert sum(option.size for option in found) <= budget
    assert cost <= best(items, budget - budget // 5)
    # The promise is weak here; what is dropped costs 0.7 %, and would cost 4 % with fewer states.
    assert 1.001 < cost / best(items, budget) < 1.01


def test_a_choice_that_leaves_too_little_for_later_items_is_dropped_in_time() -> None:
    """With one state for each size, the cheaper one would push the smaller one out."""
    items = [[Option(1.0, 0), Option(0.0, 3)], [Option(0.0, 97)], [Option(0.0, 0)] * 2]
    assert choose(items, 97, 1) == [0, 0, 0]
    assert choose(items, 96, 1) is None


def test_of_equal_choices_the_smaller_one_wins_then_the_earlier_option() -> None:
    items = [[Option(1.0, 5), Option(1.0, 4), Option(1.0, 4)], [Option(0.0, 1), Option(0.0, 1)]]
    assert choose(items, 100, 1000) == [1, 0]


def items_in(model, context, *, bias: bool = True) -> list[Item]:
    widths = Widths([0.5], [0.75, 0.25], 16)
    return items_of(anatomy(model), context, widths, "WIFV", bias=bias)


@torch.no_grad()
def test_variants_of_a_layer_run_together_above_it_and_cost_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("llama")
    context = tiny_context(model)
    run, windows = PartialForward.run, []

    def counted(self, layer: int, batch: int, hidden: torch.Tensor, gone=()) -> torch.Tensor:
        windows.append(len(hidden))
        return run(self, layer, batch, hidden, gone)

    monkeypatch.setattr(PartialForward, "run", counted)
    found, tried, runs = [], [], []
    for at_once in (1, 2, 5):
        monkeypatch.setattr(PartialForward, "variants_at_once", at_once)
        windows.clear()
        trials = Trials(model, context, items_in(model, context), "kl", lambda: tried.append(1))
        found.append(trials.costs())
        assert max(windows) == at_once * min(windows)
        runs.append((len(windows), sum(windows), len(tried)))
        tried.clear()
    (alone, *_), (few, *_), (fewest, *_) = runs
    assert alone > few > fewest
    assert len({each[1:] for each in runs}) == 1
    for base, costs in found[1:]:
        assert base == pytest.approx(found[0][0], abs=1e-9)
        for block, expected in found[0][1].items():
            assert costs[block] == pytest.approx(expected, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe"])
@torch.no_grad()
def test_costs_and_sizes_are_those_of_the_model_with_one_variant(family: str) -> None:
    """Of the model after surgery: its KL from dense, its parameters, its weights and cache."""
    model = any_type.tiny_model(family)
    context = tiny_context(model)
    context.calibration = context.windows[:2] % model.config.vocab_size
    items = items_in(model, context)
    parts, tokens = anatomy(model), Tokens(9, 2)
    counted = parameters_of(parts, items)
    stored = memory_of(parts, items, counted, tokens)
    trials = Trials(model, context, items, "kl", lambda: None)
    base, costs = trials.costs()
    assert base == pytest.approx(0, abs=1e-6)
    dense = model(context.windows).logits[:, :-1].log_softmax(-1)
    for item in (items[0], items[1], items[-1]):
        for index, variant in enumerate(item.variants):
            smaller = any_type.tiny_model(family)
            its = tiny_context(smaller)
            make(smaller, its, [item], {item.block: variant})
            logits = smaller(context.windows).logits[:, :-1].log_softmax(-1)
            kl = float((dense.exp() * (dense - logits)).sum(-1).mean())
            assert costs[item.block][index] == pytest.approx(kl, rel=1e-3, abs=1e-6)
            for sizes, now in ((counted, parameters), (stored, lambda x: memory(x, tokens))):
                without = sizes.total - sizes.of[item.block][0]
                assert now(anatomy(smaller)) == without + sizes.of[item.block][index]


@torch.no_grad()
def test_later_rounds_measure_in_the_model_of_the_last_one_and_leave_the_model_dense() -> None:
    model, dense = tiny_model("llama"), tiny_model("llama")
    context = tiny_context(model)
    items = items_in(model, context)
    trials = Trials(model, context, items, "loss", lambda: None)
    start = trials.cost()
    with trials.restored():
        for item in items[:3]:
            trials.set(item, item.variants[1])
        trials.set(items[3], items[3].variants[-1])
        base, costs = trials.costs()
        assert base == pytest.approx(trials.cost())
        assert costs[items[0].block][1] == 0
        trials.set(items[0], items[0].variants[0])
        assert trials.cost() - base == pytest.approx(costs[items[0].block][0], abs=1e-6)
    assert trials.cost() == pytest.approx(start, abs=1e-12)
    for mine, its in zip(model.parameters(), dense.parameters(), strict=True):
        assert torch.equal(mine, its)
    assert not any(module._forward_hooks for module in model.modules())


def test_narrower_variants_keep_what_flap_s_metric_says_and_its_mean_as_a_bias() -> None:
    model = tiny_model("llama")
    items = items_in(model, context := tiny_context(model))
    flap = load_plugins()["method"]["flap"].value
    other = tiny_model("llama")
    with torch.no_grad():
        flap(flap.Options(structure="UL-UM", ratio=0.6)).prune(other, tiny_context(other))
    channels = items[1]
    assert [variant.groups for variant in channels.variants] == [80, 64, 16, 0]
    variant = channels.variants[2]
    make(model, context, [channels], {channels.block: variant})
    layer, its = model.model.layers[0].mlp, other.model.layers[0].mlp
    # FLAP keeps 32 of 80 channels: ours are among them.
    kept = {tuple(row.tolist()) for row in its.up_proj.weight}
    assert all(tuple(row.tolist()) in kept for row in layer.up_proj.weight)
    assert len(layer.up_proj.weight) == 80 - int(variant.gone.sum()) == 16
    assert float(layer.down_proj.bias.norm()) > 0


def test_the_notes_say_what_was_chosen_and_the_model_is_that() -> None:
    model = tiny_model("llama")
    dense = parameters(anatomy(model))
    context = prune(model, target_parameters=0.55, multiple_of=4)
    notes = context.notes
    assert notes["dense_size"] == dense
    assert notes["limit"] == int((1 - 0.55) * dense)
    assert notes["predicted_size"] <= notes["limit"]
    assert notes["measured_size"] == parameters(anatomy(model)) <= notes["predicted_size"]
    gone = [name for name, [taken, *_] in notes["variants"].items() if taken[0] == 0]
    for name, [taken, *others] in notes["variants"].items():
        parts = anatomy(model)
        if int(name[0]) in context.kept_layers:
            layer = parts.layers[context.kept_layers.index(int(name[0]))]
            assert parts.groups(layer, name[2:]) == taken[0]
        else:
            assert taken[0] == 0
        # 80 channels become 60, 40 or 20, or none; two KV groups become one, or none.
        assert len(others) == (4 if name.endswith("mlp") else 2)
    assert gone
    logits = model(context.windows).logits[:, :-1].log_softmax(-1)
    whole = tiny_model("llama")(context.windows).logits[:, :-1].log_softmax(-1)
    kl = float((whole.exp() * (whole - logits)).sum(-1).mean())
    assert notes["measured_cost"] == pytest.approx(kl, rel=1e-3)


@pytest.mark.parametrize("target", ["target_parameters", "target_memory"])
def test_no_budget_is_exceeded_and_a_larger_one_costs_no_more(target: str) -> None:
    costs = []
    for share in (0.1, 0.3, 0.5):
        notes = prune(tiny_model("llama"), rounds=1, mlp=[0.5], **{target: share}).notes
        assert notes["measured_size"] <= notes["predicted_size"] <= notes["limit"]
        costs.append(notes["predicted_cost"])
    assert costs == sorted(costs)


def test_more_rounds_measure_more_often_and_the_same_options_choose_the_same() -> None:
    once = prune(tiny_model("llama"), rounds=1).notes
    twice, again = (prune(tiny_model("llama"), rounds=2).notes for _ in range(2))
    assert twice == again
    assert twice["decoder_evaluations"] > 1.5 * once["decoder_evaluations"]
    # In each of 4 layers, and for the model before and after: each variant, and dense once. Of 80
    # channels 64 or 32 stay, or none, and of two KV groups one or none.
    assert once["head_evaluations"] == 4 * (3 + 2 + 1) + 2 + 2


def test_a_model_whose_blocks_cannot_go_only_gets_narrower() -> None:
    model = tiny_model("opt", do_layer_norm_before=False)
    notes = prune(model, target_parameters=0.2, rounds=1).notes
    assert len(anatomy(model).blocks) == 8
    assert all(taken[0] > 0 for [taken, *_] in notes["variants"].values())
    assert notes["measured_size"] == parameters(anatomy(model)) <= notes["limit"]


def test_a_share_of_zero_changes_nothing() -> None:
    model = tiny_model("llama")
    assert prune(model, target_memory=0).notes == {}
    for mine, dense in zip(model.parameters(), tiny_model("llama").parameters(), strict=True):
        assert torch.equal(mine, dense)


def test_what_is_out_of_reach_is_refused_before_anything_is_measured(monkeypatch) -> None:
    monkeypatch.setattr("prunebench_plugins.budget_search.Trials", None)
    with pytest.raises(PrunebenchError, match=r"`target_parameters: 0.9` is out of reach") as error:
        prune(tiny_model("llama"), target_parameters=0.9)
    assert "of the dense model" in str(error.value)


def test_a_model_with_damaged_weights_is_refused_and_left_as_it_was() -> None:
    model = tiny_model("llama")
    model.model.layers[2].mlp.down_proj.weight[3, 4] = math.inf
    before = [each.clone() for each in model.parameters()]
    with pytest.raises(PrunebenchError, match="not finite"):
        prune(model)
    for mine, its in zip(model.parameters(), before, strict=True):
        assert torch.equal(mine, its)


def timing(context, factor: float = 1.0) -> list[list[int]]:
    """Let a step of a model take as many microseconds as it has parameters; returns what was timed.

    The machine is ``factor`` times as slow with each timing.
    """
    timed: list[list[int]] = []

    def step_seconds(model, others, **shape: int) -> list[tuple[float, float]]:
        assert shape == {"batch_size": 2, "prompt": 128, "new_tokens": 8}
        found = []
        for other in others:
            timed.append([parameters(anatomy(each)) for each in (model, other)])
            mine, theirs = (1e-6 * each * factor ** len(timed) for each in timed[-1])
            found.append((mine, theirs))
        return found

    context.step_seconds = step_seconds
    return timed


@torch.no_grad()
def prune_for_latency(model, context, target: float) -> dict:
    options = KIND.Options(target_latency=target, batch_size=2, rounds=1, bias=False, mlp=[0.5])
    KIND(options).prune(model, context)
    return context.notes


def test_a_budget_of_time_takes_what_each_variant_saves_of_a_step() -> None:
    """If parameters take all the time, the choice is that of a budget of parameters."""
    model, other = tiny_model("llama"), tiny_model("llama")
    context = tiny_context(model)
    timed = timing(context)
    notes = prune_for_latency(model, context, 0.3)
    assert len(timed) == (1 + 1) + (1 + 1) + 1  # narrower and removed, of each kind, and the result
    assert notes["dense_size"] == 1000 * parameters(anatomy(other)) == 1000 * timed[0][0]
    assert notes["measured_size"] <= notes["predicted_size"] <= notes["limit"]
    same = prune(other, target_parameters=0.3, rounds=1, bias=False, mlp=[0.5]).notes
    assert parameters(anatomy(model)) == parameters(anatomy(other))
    assert notes["predicted_cost"] == pytest.approx(same["predicted_cost"])
    assert notes["variants"].keys() == same["variants"].keys()


def test_a_cell_that_was_interrupted_chooses_by_its_first_times() -> None:
    kept: dict[str, object] = {}

    def remember(name, measure):
        return kept.setdefault(name, kept[name] if name in kept else measure())

    found = []
    for factor in (1.0, 1.3):
        model = tiny_model("llama")
        context = tiny_context(model)
        context.remember = remember
        timed = timing(context, factor)
        notes = prune_for_latency(model, context, 0.3)
        found.append((notes["step_seconds"], notes["variants"], notes["dense_size"]))
        assert len(timed) == (1 if factor > 1 else 5)
    assert found[0] == found[1]


def test_blocks_of_another_shape_are_timed_apart() -> None:
    model = tiny_model("llama")
    context = tiny_context(model)
    context.keep_groups(model, {Block(2, "mlp"): range(40)})
    timed = timing(context)
    notes = prune_for_latency(model, context, 0.2)
    assert len(notes["step_seconds"]["saved_by_variant"]) == 3
    assert len(timed) == 2 + 2 + 2 + 1
    assert notes["predicted_size"] <= notes["limit"]


@pytest.mark.parametrize(
    "options",
    [
        {"target_parameters": 0.2, "target_memory": 0.2},
        {"target_memory": 0.2, "target_latency": 0.2},
        {"target_latency": 0.2, "new_tokens": 0},
        {"target_parameters": 1},
        {"mlp": [1.0]},
        {"attention": [0]},
        {"rounds": 0},
        {"resolution": 0},
        {"cost": "accuracy"},
    ],
)
def test_options_that_make_no_sense_are_refused(options) -> None:
    with pytest.raises(ValidationError):
        KIND.Options.model_validate(options)


def test_the_shape_of_the_cache_matters_for_memory_only() -> None:
    idle = KIND.Options(target_parameters=0.2, prompt=64).without_effect()
    assert set(idle) == {"prompt", "new_tokens", "batch_size"}
    assert not KIND.Options(target_memory=0.2, prompt=64).without_effect()
    shares = []
    for batch in (1, 10_000):  # the cache outweighs the weights
        notes = prune(tiny_model("llama"), target_memory=0.3, batch_size=batch, rounds=1).notes
        kept = [taken[0] for name, [taken, *_] in notes["variants"].items() if "attention" in name]
        shares.append(sum(kept) / (2 * len(kept)))
    assert shares[1] <= 0.75


def test_the_report_has_predicted_and_measured_side_by_side() -> None:
    dense = build.record(build.cell("dense"), 20.0, 1.0)
    pruned = build.record(build.cell("budget-search"), 25.0, 1.0)
    pruned.method_notes = prune(tiny_model("llama"), rounds=1).notes
    given = build.given([dense, pruned])
    table = ReportData(given.table, given.records)
    _, sizes, variants = BudgetPredictions().build(table)
    [row] = sizes.rows
    cells = dict(zip(sizes.head, row, strict=True))
    notes = pruned.method_notes
    assert cells["Measured"] == f"{notes['measured_size'] / 1e6:.2f}"
    assert cells["Cost predicted"] == f"{notes['predicted_cost']:.3f}"
    assert float(cells["Loss above dense"]) == pytest.approx(math.log(25 / 20), abs=2e-3)
    assert isinstance(variants, Folded)
    assert len(variants.blocks[0].rows) == len(notes["variants"])
    pruned.method_notes = {}
    assert BudgetPredictions().build(table) == []


def test_blocks_sort_as_they_run() -> None:
    model = tiny_model("llama")
    items = items_in(model, tiny_context(model))
    assert [item.block for item in items[:3]] == [
        Block(0, "attention"),
        Block(0, "mlp"),
        Block(1, "attention"),
    ]
