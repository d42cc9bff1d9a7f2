"""Minitron: its scores by hand, its widths, and a result that is a plain model."""

from __future__ import annotations

import copy

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from prunebench import PrunebenchError, anatomy
from prunebench.model import batches
from prunebench.plugin.host import load_plugins
from prunebench.testing.contexts import tiny_context
from prunebench_plugins.minitron_importance import observe
from prunebench_plugins.minitron_widths import Parameters, Widths
from tiny import VOCABULARY, tiny_model

KIND = load_plugins()["method"]["minitron"].value
TOKENS = torch.randint(2, VOCABULARY, (5, 12), generator=torch.Generator().manual_seed(8))


def pruned(model, **options):
    context = tiny_context(model)
    context.calibration = TOKENS
    with torch.no_grad():
        KIND(KIND.Options(**options)).prune(model, context)
    return context


def observed(model, device=None):
    context = tiny_context(model)
    context.calibration, context.device = TOKENS, device
    return observe(anatomy(model), context)


def size(model) -> int:
    return sum(each.numel() for each in model.parameters())


def test_scores_are_those_of_the_formulas() -> None:
    model = tiny_model("llama")
    seen: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if name.endswith("norm"):
            module.register_forward_hook(lambda _, __, out, n=name: seen.update({n: out}))
        if name.endswith(("o_proj", "down_proj")):
            module.register_forward_pre_hook(lambda _, args, n=name: seen.update({n: args[0]}))
    with torch.no_grad():
        states = model(TOKENS, output_hidden_states=True).hidden_states
        behind_last: list[torch.Tensor] = []
        model.model.layers[-1].register_forward_hook(lambda _, __, out: behind_last.append(out))
        model(TOKENS)
    found = observed(tiny_model("llama"))

    def score(x: torch.Tensor) -> torch.Tensor:
        return x.abs().mean(dim=1).double().square().sum(dim=0).sqrt()

    norms = [score(x) for name, x in seen.items() if name.endswith("norm")]
    assert len(norms) == 2 * len(model.model.layers) + 1
    torch.testing.assert_close(found.hidden, torch.stack(norms).sum(0), rtol=1e-5, atol=0)
    states = [*states[:-1], behind_last[0]]
    for index in range(len(model.model.layers)):
        inner = score(seen[f"model.layers.{index}.mlp.down_proj"])
        torch.testing.assert_close(found.channels[index], inner, rtol=1e-5, atol=0)
        heads = score(seen[f"model.layers.{index}.self_attn.o_proj"])
        groups = heads.view(model.config.num_key_value_heads, -1).sum(1)
        torch.testing.assert_close(found.groups[index], groups, rtol=1e-5, atol=0)
        cosine = torch.cosine_similarity(states[index], states[index + 1], dim=-1)
        assert float(found.layers[index]) == pytest.approx(1 - float(cosine.mean()), abs=1e-6)


@pytest.mark.parametrize("tokens", [1, 24, 36])
def test_scores_do_not_depend_on_the_batch(tokens: int, monkeypatch) -> None:
    whole = observed(tiny_model("opt"))
    monkeypatch.setitem(batches.BATCH_TOKENS, "cpu", tokens)
    same_scores(whole, observed(tiny_model("opt")))


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_scores_are_the_same_if_layers_compute_on_another_device(family: str) -> None:
    same_scores(observed(tiny_model(family)), observed(tiny_model(family), torch.device("cpu")))


def same_scores(some, others) -> None:
    for one, other in zip(some, others, strict=True):
        for mine, theirs in zip(one, other, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


def test_the_highest_stay_and_layers_count_in_the_dense_model() -> None:
    model = tiny_model("llama")
    dense, found = copy.deepcopy(model), observed(tiny_model("llama"))
    layers = len(model.model.layers)
    context = pruned(
        model, intermediate_size=0.5, num_key_value_heads=1, num_hidden_layers=2, multiple_of=1
    )
    gone = found.layers.argsort()[: layers - 2].tolist()
    assert context.notes["layers_removed"] == gone
    assert context.kept_layers == sorted(set(range(layers)) - set(gone))
    for layer, index in zip(model.model.layers, context.kept_layers, strict=True):
        width = layer.mlp.down_proj.in_features
        assert width == round(dense.config.intermediate_size / 2)
        best = sorted(found.channels[index].argsort(descending=True)[:width].tolist())
        expected = dense.model.layers[index].mlp.up_proj.weight[best]
        assert torch.equal(layer.mlp.up_proj.weight, expected)
        group = int(found.groups[index].argmax())
        head = dense.model.layers[index].self_attn.k_proj.weight.chunk(
            dense.config.num_key_value_heads
        )
        assert torch.equal(layer.self_attn.k_proj.weight, head[group])


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "opt", "gpt_neox", "phi"])
def test_the_result_is_a_plain_model_of_the_counted_size(family: str, tmp_path) -> None:
    model = tiny_model(family)
    before = Widths.of(anatomy(model))
    parameters = Parameters(anatomy(model), before)
    assert parameters.count(before) == size(model)
    expected = Widths(before.hidden - 16, before.channels - 8, before.groups, before.layers - 1)
    predicted = parameters.count(expected)
    pruned(
        model,
        hidden_size=expected.hidden,
        intermediate_size=expected.channels,
        num_hidden_layers=expected.layers,
        multiple_of=4,
    )
    assert Widths.of(anatomy(model)) == expected
    assert size(model) == predicted
    if family in ("opt", "gpt_neox"):
        return  # their configs cannot say that heads are wider than the hidden size divided by them
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)


@pytest.mark.parametrize("ratio", [0.1, 0.35, 0.6])
def test_a_ratio_removes_at_least_that_share_and_little_more(ratio: float) -> None:
    model = tiny_model("llama")
    dense, before = size(model), Widths.of(anatomy(model))
    notes = pruned(model, ratio=ratio, multiple_of=4).notes
    after = Widths(**notes["widths"]["after"])
    assert size(model) <= (1 - ratio) * dense
    assert after.groups == before.groups
    assert after.layers == before.layers
    for field in ("hidden", "channels"):
        assert getattr(after, field) % 4 == 0
    # One step wider in the width that shrank more would be too large.
    parameters = Parameters(anatomy(tiny_model("llama")), before)
    field = min(
        ("hidden", "channels"), key=lambda name: getattr(after, name) / getattr(before, name)
    )
    wider = after._replace(**{field: getattr(after, field) + 4})
    both = after._replace(hidden=after.hidden + 4, channels=after.channels + 4)
    assert parameters.count(both) > (1 - ratio) * dense
    assert parameters.count(wider) > parameters.count(after)


def test_nothing_to_remove_changes_nothing() -> None:
    for options in ({"ratio": 0}, {"hidden_size": 48}, {"num_key_value_heads": 2}):
        model = tiny_model("llama")
        pruned(model, **options)
        for mine, dense in zip(model.parameters(), tiny_model("llama").parameters(), strict=True):
            assert torch.equal(mine, dense)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 64}, "`hidden_size: 64` is more than the model has: 48"),
        ({"intermediate_size": 30, "multiple_of": 4}, "is no multiple of 4"),
        ({"ratio": 0.97}, "of a multiple of 64 channels remove 97%"),
    ],
)
def test_what_the_model_cannot_have_is_refused(options, message) -> None:
    with pytest.raises(PrunebenchError, match=message):
        pruned(tiny_model("llama"), **options)


@pytest.mark.parametrize(
    "options", [{"hidden_size": 0}, {"hidden_size": 1.5}, {"ratio": 0.2, "hidden_size": 32}]
)
def test_options_that_make_no_sense_are_refused(options) -> None:
    with pytest.raises(ValidationError):
        KIND.Options(**options)


def test_layers_that_differ_are_refused() -> None:
    model = tiny_model("llama")
    context = tiny_context(model)
    from prunebench import Block

    context.keep_groups(model, {Block(1, "mlp"): list(range(10))})
    with pytest.raises(PrunebenchError, match="layer 1: the width of its mlp is 10") as raised:
        KIND(KIND.Options()).prune(model, context)
    assert "keeps all layers alike" in str(raised.value)
