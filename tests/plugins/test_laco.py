"""LaCo: layers merged as in the released notebooks or in the paper, and the search over them."""

from __future__ import annotations

import copy
import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunebench import Context, Method, PrunebenchError, anatomy
from prunebench.model import batches
from prunebench.model.surgery import remove_layers
from prunebench.plugin.host import load_plugins
from prunebench.testing import tiny_calibration
from prunebench_plugins.laco_merges import Merger, Space, Trial, Walk, bisected
from tiny import tiny_model

ALWAYS = -2.0
WINDOWS = tiny_calibration(3, 8)


@functools.cache
def registered() -> type[Method]:
    found: type[Method] = load_plugins()["method"]["laco"].value
    return found


def method(**options: object) -> Method:
    return registered()(registered().Options.model_validate(options))


def prune(model, **options: object) -> Context:
    context = Context(WINDOWS, 0, list(range(len(anatomy(model).layers))))
    with torch.no_grad():
        method(**options).prune(model, context)
    return context


@torch.no_grad()
def notebook(model, how: str, threshold: float, space: Space) -> tuple[object, list[dict]]:
    """The released loop on whole copies of the model; ``how`` chooses the formula of a merge."""

    def states(one) -> list[torch.Tensor]:
        return [
            one(window[None], output_hidden_states=True).hidden_states[-1].flatten()
            for window in WINDOWS
        ]

    dense, compressed, trials = states(model), copy.deepcopy(model), []
    lay = space.highest - space.layers
    while lay >= space.lowest:
        trial = copy.deepcopy(compressed)
        layers = anatomy(trial).layers
        number = min(space.layers - 1, len(layers) - lay - 1)
        for name, linear in anatomy(trial).linears(layers[lay]).items():
            theta = linear.weight.clone()
            for other in layers[lay + 1 : lay + 1 + number]:
                base = linear.weight if how == "code" else theta
                linear.weight += other.get_submodule(name).weight - base
        remove_layers(trial, range(lay + 1, lay + 1 + number))
        cosines = [
            torch.cosine_similarity(a, b, 0) for a, b in zip(dense, states(trial), strict=True)
        ]
        cosine = float(torch.stack(cosines).mean())
        before = len(anatomy(compressed).layers)
        trials.append({"lay": lay, "number": number, "layers_before": before, "cosine": cosine,
                       "accepted": cosine > threshold})  # fmt: skip
        if cosine > threshold:
            compressed = trial
            lay -= space.interval
        else:
            lay -= 1
    return compressed, trials


def tiny(family: str = "llama", depth: int = 8, seed: int = 0):
    return tiny_model(family, seed, num_hidden_layers=depth)


@settings(max_examples=3)
@given(
    st.sampled_from(["llama", "qwen2", "opt", "gpt_neox"]),
    st.sampled_from(["code", "paper"]),
    st.integers(2, 3),
    st.integers(1, 2),
    st.sampled_from([(None, None), (1, 5)]),
    st.integers(0, 1000),
)
def test_trials_merges_and_weights_are_those_of_the_notebook(
    family: str,
    how: str,
    size: int,
    interval: int,
    limits: tuple[int | None, int | None],
    seed: int,
) -> None:
    model = tiny(family, 6, seed)
    lowest, highest = limits[0] or 0, limits[1] or 5
    space = Space(size, interval, lowest, highest)
    _, tried = notebook(model, how, math.inf, space)
    # Between the cosines of all merges of the dense model, so that some are kept.
    cosines = sorted(trial["cosine"] for trial in tried)
    threshold = (cosines[len(cosines) // 2 - 1] + cosines[len(cosines) // 2]) / 2
    expected, trials = notebook(model, how, threshold, space)
    options = {"C": size, "interval": interval, "range": limits, "threshold": threshold}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(batches.BATCH_TOKENS, "cpu", 16)  # two batches
        context = prune(model, merge=how, **options)
    found = context.notes["trials"]
    assert [{**one, "cosine": 0} for one in found] == [{**one, "cosine": 0} for one in trials]
    assert [one["cosine"] for one in found] == pytest.approx(
        [one["cosine"] for one in trials], abs=1e-4
    )
    for mine, its in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-6)
    assert model.config.num_hidden_layers == len(context.kept_layers)


def test_as_in_the_code_a_merged_layer_has_the_weights_of_the_last_one() -> None:
    """Exactly; norms and biases stay."""
    dense, model = tiny("qwen2", 5), tiny("qwen2", 5)
    for layer in anatomy(dense).layers:
        layer.input_layernorm.weight.normal_(generator=torch.Generator().manual_seed(1))
    model.load_state_dict(dense.state_dict())
    context = prune(model, C=3, threshold=ALWAYS, range=[1, 4])
    assert context.notes["merges"] == [[1, 2]]
    assert context.notes["removed_in_order"] == [2, 3]
    merged, base, last = anatomy(model).layers[1], *(anatomy(dense).layers[i] for i in (1, 3))
    for name, linear in anatomy(model).linears(merged).items():
        assert torch.equal(linear.weight, last.get_submodule(name).weight)
        if linear.bias is not None:
            assert torch.equal(linear.bias, base.get_submodule(name).bias)
    assert torch.equal(merged.input_layernorm.weight, base.input_layernorm.weight)


@pytest.mark.parametrize("how", ["code", "paper"])
def test_merging_equal_layers_keeps_their_weights(how: str) -> None:
    model = tiny("llama", 4)
    layers = anatomy(model).layers
    for layer in layers[1:]:
        layer.load_state_dict(layers[0].state_dict())
    before = copy.deepcopy(layers[0].state_dict())
    prune(model, C=2, threshold=ALWAYS, merge=how)
    for layer in anatomy(model).layers:
        for name, value in layer.state_dict().items():
            torch.testing.assert_close(value, before[name], rtol=0, atol=1e-6)


def test_the_paper_adds_up_differences_from_the_first_layer() -> None:
    dense, model = tiny("llama", 4), tiny("llama", 4)
    prune(model, C=3, threshold=ALWAYS, merge="paper", range=[0, 3])
    one, two, three = (layer.mlp.up_proj.weight for layer in anatomy(dense).layers[:3])
    found = anatomy(model).layers[0].mlp.up_proj.weight
    torch.testing.assert_close(found, one + (two - one) + (three - one))


def test_the_interval_is_what_a_kept_merge_goes_down_by() -> None:
    notes = prune(tiny("llama", 8), C=2, threshold=ALWAYS, interval=2).notes
    assert notes["merges"] == [[5, 1], [3, 1], [1, 1]]
    notes = prune(tiny("llama", 8), C=2, threshold=notes["trials"][1]["cosine"], interval=2).notes
    tried = [(one["lay"], one["accepted"]) for one in notes["trials"][:3]]
    assert tried == [(5, True), (3, False), (2, tried[2][1])]


def test_a_trial_runs_only_what_is_above_it() -> None:
    notes = prune(tiny("llama", 12), C=3, threshold=0.9).notes
    trials = notes["trials"]
    assert notes["naive_evaluations"] == 2 * len(trials)
    above = sum(one["layers_before"] - one["number"] - one["lay"] for one in trials)
    # Beside them, each dense layer at most twice.
    assert above < 12 * notes["decoder_evaluations"] <= above + 2 * 12 + 0.01


@pytest.mark.parametrize("depth", range(1, 10))
def test_states_of_every_layer_are_found_on_the_way_down(depth: int) -> None:
    """A stride of whole layers, or not; the highest one has a segment of its own, or not."""
    model = tiny("llama", depth)
    context = Context(WINDOWS, 0, list(range(depth)))
    with torch.no_grad():
        prefix = Merger(model, context, "code", lambda _: None)._prefix
        forward = context.partial_forward(model)
        expected = [forward.start()[0]]
        for layer in range(depth):
            expected.append(forward.run(layer, 0, expected[-1]))
        for layer in [*reversed(range(depth + 1)), depth, 0]:
            assert torch.equal(prefix.at(layer)[0], expected[layer])
    assert len(prefix._kept) + len(prefix._near) <= 2 * math.isqrt(depth) + 3


def test_the_model_is_the_same_after_a_search() -> None:
    model, dense = tiny("llama", 6), tiny("llama", 6)
    with pytest.raises(PrunebenchError, match="no merge"):
        prune(model, C=2, threshold=1.0)
    assert all(map(torch.equal, model.parameters(), dense.parameters()))


def made(*trials: tuple[float, bool]) -> list[Trial]:
    return [Trial(0, 1, 9, cosine, accepted) for cosine, accepted in trials]


@settings(max_examples=30)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=12, unique=True), st.data())
def test_bisection_finds_the_number_of_layers(cosines: list[float], data: st.DataObject) -> None:
    """With cosines that do not depend on earlier merges every number can be reached."""
    seen = []

    def walk(threshold: float) -> Walk:
        seen.append(threshold)
        return Walk(threshold, made(*((one, one > threshold) for one in cosines)), [])

    wanted = data.draw(st.integers(1, len(cosines)))
    # Nothing is above a threshold of 1, so a cosine of 1 is never kept unless all are.
    found = bisected(walk, wanted)
    if max(cosines) < 1 and min(cosines) > -1:
        assert found.removed == wanted
    assert len(seen) < 70


def test_the_closest_number_is_taken_and_of_two_the_smaller() -> None:
    def walk(threshold: float) -> Walk:
        taken = [Trial(0, 3, 9, 0.5, threshold < 0.5), Trial(0, 1, 9, 0.8, threshold < 0.8)]
        return Walk(threshold, taken, [])

    assert [bisected(walk, wanted).removed for wanted in (1, 2, 3, 4)] == [1, 1, 4, 4]


def test_a_target_removes_this_share_of_the_layers() -> None:
    context = prune(tiny("llama", 8), C=2, target=0.25)
    assert len(context.kept_layers) == 6
    again = prune(tiny("llama", 8), C=2, threshold=context.notes["threshold"])
    assert again.notes["merges"] == context.notes["merges"]


@pytest.mark.parametrize("options", [{"C": 1}, {"target": 0.0, "C": 2}])
def test_nothing_to_merge_changes_nothing(options: dict[str, object]) -> None:
    model, dense = tiny("llama", 4), tiny("llama", 4)
    assert prune(model, **options).kept_layers == [0, 1, 2, 3]
    assert all(map(torch.equal, model.parameters(), dense.parameters()))


def zero_norm(model) -> None:
    anatomy(model).final_norm.weight.zero_()


def narrow(model) -> None:
    context = Context(None, 0, [0, 1, 2, 3])
    [block] = [block for block in anatomy(model).blocks if str(block) == "2.mlp"]
    context.keep_groups(model, {block: range(10)})


@pytest.mark.parametrize(
    ("options", "damage", "message"),
    [
        ({"C": 7}, None, "merges of C = 7 layers do not fit"),
        ({"C": 2, "range": [0, 4]}, None, r"range: \[0, 4\] is not inside the model"),
        ({"C": 2, "range": [3, 1]}, None, r"range: \[3, 1\] is not inside the model"),
        ({"C": 2, "threshold": 1.5}, None, r"no merge has a cosine above the threshold 1\.5: the highest is 0\.\d{4}"),
        ({"C": 3, "target": 0.9}, None, r"4 layers cannot be merged away: \d are"),
        ({"C": 2}, zero_norm, "dense model are zero or not finite"),
        ({"C": 2}, narrow, "layers 0 and 2 cannot be merged"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_clear_error(options, damage, message: str) -> None:
    model = tiny("llama", 4)
    with torch.no_grad():
        if damage is not None:
            damage(model)
        dense = copy.deepcopy(model)
    with pytest.raises(PrunebenchError, match=message) as caught:
        prune(model, **options)
    assert caught.value.hint
    assert all(map(torch.equal, model.parameters(), dense.parameters()))


def test_merges_without_finite_states_are_refused() -> None:
    """Differences of weights overflow; as in the code a NaN is above no threshold."""
    model = tiny("llama", 4)
    for layer, sign in zip(anatomy(model).layers, (1, -1, 1, -1), strict=True):
        layer.self_attn.v_proj.weight.zero_()  # so that the dense model does not read the others
        layer.self_attn.o_proj.weight.fill_(sign * 3e38)
    with pytest.raises(PrunebenchError, match="no merged model gives finite hidden states"):
        prune(model, C=2, threshold=ALWAYS, merge="paper")


def test_a_threshold_beside_a_target_has_no_effect() -> None:
    assert set(method(target=0.2, threshold=0.6).options.without_effect()) == {"threshold"}
    assert not method(threshold=0.6).options.without_effect()
