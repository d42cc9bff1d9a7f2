"""ShortGPT: Block Influence as defined, layers really removed, an ordinary checkpoint."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from prunebench import Context, Method, PrunebenchError, anatomy
from prunebench.model import batches
from prunebench.plugin.host import load_plugins
from tiny import FAMILIES, tiny_model


@functools.cache
def registered() -> type[Method]:
    found: type[Method] = load_plugins()["method"]["shortgpt"].value
    return found


def shortgpt(**options: object) -> Method:
    return registered()(registered().Options.model_validate(options))


def prune(model, **options: object) -> Context:
    ids = torch.randint(
        0, model.config.vocab_size, (3, 12), generator=torch.Generator().manual_seed(2)
    )
    context = Context(ids, 0, list(range(len(anatomy(model).layers))))
    with torch.no_grad():
        shortgpt(**options).prune(model, context)
    return context


def identity(layer) -> None:
    """Make a decoder layer return its input: it adds zero to the residual."""
    with torch.no_grad():
        for name, linear in layer.named_modules():
            if name.endswith(("o_proj", "out_proj", ".dense", "down_proj", "fc2", "dense_4h_to_h")):
                linear.weight.zero_()
                if linear.bias is not None:
                    linear.bias.zero_()


@pytest.mark.parametrize("family", FAMILIES)
def test_an_identity_layer_has_no_influence_and_goes_first(family: str) -> None:
    model = tiny_model(family, num_hidden_layers=4)
    identity(anatomy(model).layers[2])
    before = model(torch.arange(8)[None]).logits
    context = prune(model, count=1)
    assert context.notes["removed_in_order"] == [2]
    assert context.notes["block_influence"][2] == pytest.approx(0, abs=1e-6)
    assert context.kept_layers == [0, 1, 3]
    torch.testing.assert_close(model(torch.arange(8)[None]).logits, before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_result_generates_and_reloads_with_plain_from_pretrained(
    family: str, tmp_path: Path
) -> None:
    model = tiny_model(family, num_hidden_layers=4)
    prune(model, ratio=0.5)
    assert len(anatomy(model).layers) == model.config.num_hidden_layers == 2
    ids = torch.arange(1, 9)[None]
    kwargs = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    cached = model.generate(ids, use_cache=True, **kwargs)
    assert torch.equal(cached, model.generate(ids, use_cache=False, **kwargs))
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert torch.equal(again.generate(ids, use_cache=True, **kwargs), cached)


def test_block_influence_is_the_mean_cosine_distance_of_the_layers_themselves() -> None:
    """Not of `hidden_states[-1]`, which has passed the final norm."""
    model = tiny_model("llama", num_hidden_layers=3)
    generator = torch.Generator().manual_seed(9)
    gain = anatomy(model).final_norm.weight
    gain.data = torch.rand(gain.shape, generator=generator) * 5
    dense = tiny_model("llama", num_hidden_layers=3)
    anatomy(dense).final_norm.weight.data = gain.data.clone()
    notes = prune(model, count=0).notes
    ids = torch.randint(
        0, dense.config.vocab_size, (3, 12), generator=torch.Generator().manual_seed(2)
    )
    states = dense(ids, output_hidden_states=True).hidden_states
    for layer in range(2):
        cosine = torch.nn.functional.cosine_similarity(states[layer], states[layer + 1], dim=-1)
        assert notes["block_influence"][layer] == pytest.approx(float(1 - cosine.mean()), abs=1e-5)
    contaminated = float(
        1 - torch.nn.functional.cosine_similarity(states[2], states[3], dim=-1).mean()
    )
    assert abs(notes["block_influence"][2] - contaminated) > 1e-3
    assert all(0 <= influence <= 2 for influence in notes["block_influence"])


def states_of(model) -> list[torch.Tensor]:
    """Inputs of all layers and the last one's output, [windows, length, hidden], no final norm."""
    ids = torch.randint(
        0, model.config.vocab_size, (3, 12), generator=torch.Generator().manual_seed(2)
    )
    found: list[torch.Tensor] = []
    for layer in anatomy(model).layers:
        layer.register_forward_hook(
            lambda _, args, kwargs, output: found.extend((args[0], output)), with_kwargs=True
        )
    with torch.no_grad():
        model(ids)
    return [*found[::2], found[-1]]


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("tokens", ["all", "last", None])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_consecutive_layers_with_the_smallest_angle_are_removed(
    count: int, tokens: str | None, elsewhere: bool
) -> None:
    model = tiny_model("llama", num_hidden_layers=5)
    states = [state.double() for state in states_of(tiny_model("llama", num_hidden_layers=5))]
    expected = []
    for first in range(5 - count + 1):
        cosine = torch.nn.functional.cosine_similarity(states[first], states[first + count], dim=-1)
        angle = cosine.arccos() / torch.pi
        expected.append(float(angle.mean() if tokens == "all" else angle[:, -1].mean()))
    ids = torch.randint(
        0, model.config.vocab_size, (3, 12), generator=torch.Generator().manual_seed(2)
    )
    context = Context(ids, 0, list(range(5)), device=torch.device("cpu") if elsewhere else None)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setitem(batches.BATCH_TOKENS, "cpu", 24)
        shortgpt(metric="angular", count=count, tokens=tokens).prune(model, context)
    assert context.notes["angular_distance"] == pytest.approx(expected, abs=1e-6)
    first = expected.index(min(expected))
    assert context.notes["removed_in_order"] == list(range(first, first + count))
    assert len(context.kept_layers) == 5 - count


@pytest.mark.parametrize("metric", ["cosine", "angular"])
def test_the_last_token_alone_can_decide(metric: str) -> None:
    states = states_of(tiny_model("opt"))
    cosine = torch.nn.functional.cosine_similarity(states[1][:, -1], states[2][:, -1], dim=-1)
    notes = prune(tiny_model("opt"), metric=metric, tokens="last", count=1).notes
    found = notes["block_influence" if metric == "cosine" else "angular_distance"][1]
    wanted = (1 - cosine if metric == "cosine" else cosine.double().arccos() / torch.pi).mean()
    assert found == pytest.approx(float(wanted), abs=1e-5)


@pytest.mark.parametrize("metric", ["cosine", "angular"])
def test_parallel_states_have_no_distance(metric: str) -> None:
    """All layers return their input: cosines round to values above and below 1."""
    model = tiny_model("llama")
    for layer in anatomy(model).layers:
        identity(layer)
    notes = prune(model, metric=metric, count=2).notes
    assert notes["removed_in_order"] == [0, 1]
    for distance in notes["block_influence" if metric == "cosine" else "angular_distance"]:
        assert distance == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "angular"])
def test_the_scale_of_the_states_does_not_matter(metric: str) -> None:
    """Embeddings and everything added to them are four times as large; the cosine is the same."""
    model, larger = tiny_model("qwen2"), tiny_model("qwen2")
    anatomy(larger).embeddings.weight.mul_(4)
    for layer in anatomy(larger).layers:
        layer.self_attn.o_proj.weight.mul_(4)
        layer.mlp.down_proj.weight.mul_(4)
    key = "block_influence" if metric == "cosine" else "angular_distance"
    found, scaled = (prune(each, metric=metric, count=2).notes[key] for each in (model, larger))
    assert found == pytest.approx(scaled, rel=1e-3)


@pytest.mark.parametrize("metric", ["cosine", "angular"])
def test_states_that_are_not_finite_name_the_layer(metric: str) -> None:
    model = tiny_model("llama")
    anatomy(model).layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(PrunebenchError, match=r"layer 1: input and output have no finite cosine"):
        prune(model, metric=metric, count=1)
    assert len(anatomy(model).layers) == 4


@given(st.integers(1, 80), st.floats(0, 0.999))
def test_a_ratio_is_the_nearest_number_of_layers(total: int, ratio: float) -> None:
    assume(int(total * ratio + 0.5) < total)
    count = shortgpt(ratio=ratio).options.layers(total)
    assert abs(count - total * ratio) <= 0.5 + 1e-9


@pytest.mark.parametrize("metric", ["cosine", "angular"])
def test_zero_removes_nothing(metric: str) -> None:
    model = tiny_model("qwen2")
    layers = len(anatomy(model).layers)
    assert prune(model, metric=metric, ratio=0.0).kept_layers == list(range(layers))


def test_removing_every_layer_is_refused() -> None:
    for metric in ("cosine", "angular"):
        with pytest.raises(PrunebenchError, match="all 2 layers would be removed"):
            prune(tiny_model("llama", num_hidden_layers=2), metric=metric, count=2)


def test_ratio_and_count_together_are_refused() -> None:
    with pytest.raises(ValueError, match="not both"):
        shortgpt(ratio=0.5, count=1)


def mean_distances(cosines: list[list[float]], span: int, **options: object) -> list[float]:
    """What ShortGPT finds if layer i turns the states of each token by these cosines."""
    turned = torch.tensor(cosines).double().arccos().cumsum(0)  # [layers, tokens], angles
    angles = torch.cat([torch.zeros(1, turned.shape[1], dtype=torch.float64), turned])
    states = torch.stack([angles.cos(), angles.sin()], dim=-1)[
        :, None
    ]  # [layers + 1, 1, tokens, 2]

    class Turning(Context):
        def observe_layers(self, model, see) -> None:
            for layer, (before, after) in enumerate(itertools.pairwise(states)):
                see(layer, before * (1 + layer), after * 3)

    windows = torch.zeros(1, len(cosines[0]), dtype=torch.int64)
    context = Turning(windows, 0, list(range(len(cosines))))
    return shortgpt(**options)._mean(span, None, context).tolist()


def test_states_that_turn_round_have_an_influence_of_more_than_one() -> None:
    """1 - cos, not 1 - |cos|: a layer that turns its input round is the most influential."""
    cosines = [[0.5, 0.7], [-0.5, -0.9], [1.0, -1.0]]
    assert mean_distances(cosines, 1) == pytest.approx([0.4, 1.7, 1.0], abs=1e-6)
    assert mean_distances(cosines, 1, tokens="last") == pytest.approx([0.3, 1.9, 2.0], abs=1e-6)


def test_angles_are_shares_of_half_a_turn() -> None:
    cosines = [[0.0, 0.0], [0.0, 0.5], [-1.0, 0.5]]
    found = mean_distances(cosines, 1, metric="angular", tokens="all")
    assert found == pytest.approx([1 / 2, (1 / 2 + 1 / 3) / 2, (1 + 1 / 3) / 2], abs=1e-6)
    assert mean_distances(cosines, 2, metric="angular")[:2] == pytest.approx(
        [5 / 6, 2 / 3], abs=1e-6
    )


def test_a_quarter_of_the_layers_goes_if_nothing_is_said() -> None:
    assert prune(tiny_model("llama", num_hidden_layers=8)).kept_layers == [
        layer
        for layer in range(8)
        if layer
        not in prune(tiny_model("llama", num_hidden_layers=8), count=2).notes["removed_in_order"]
    ]
    assert [shortgpt().options.layers(total) for total in (1, 2, 5, 6, 32)] == [0, 1, 1, 2, 8]
