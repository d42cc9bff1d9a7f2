"""ShortGPT: Block Influence as defined, physical removal, and a result that is an ordinary checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from prunebench import Context, Method, PrunebenchError, anatomy
from prunebench.plugin.host import load_plugins
from tiny import FAMILIES, tiny_model


def shortgpt(**options: object) -> Method:
    cls = load_plugins().methods["shortgpt"].value
    return cls(cls.Options.model_validate(options))


def prune(model, **options: object) -> Context:
    ids = torch.randint(0, model.config.vocab_size, (3, 12), generator=torch.Generator().manual_seed(2))
    context = Context(ids, 0, list(range(len(anatomy(model).layers))))
    with torch.no_grad():
        shortgpt(**options).prune(model, context)
    return context


def identity(layer) -> None:
    """Make a decoder layer hand its input on: what it adds to the residual is zero."""
    with torch.no_grad():
        for name, linear in layer.named_modules():
            if name.endswith(("o_proj", "out_proj", "attention.dense", "down_proj", "fc2", "dense_4h_to_h")):
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
def test_the_result_generates_and_reloads_with_plain_from_pretrained(family: str, tmp_path: Path) -> None:
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
    ids = torch.randint(0, dense.config.vocab_size, (3, 12), generator=torch.Generator().manual_seed(2))
    states = dense(ids, output_hidden_states=True).hidden_states
    for layer in range(2):
        cosine = torch.nn.functional.cosine_similarity(states[layer], states[layer + 1], dim=-1)
        assert notes["block_influence"][layer] == pytest.approx(float(1 - cosine.mean()), abs=1e-5)
    contaminated = float(1 - torch.nn.functional.cosine_similarity(states[2], states[3], dim=-1).mean())
    assert abs(notes["block_influence"][2] - contaminated) > 1e-3
    assert all(0 <= influence <= 2 for influence in notes["block_influence"])


@given(st.integers(1, 80), st.floats(0, 0.999))
def test_a_ratio_is_the_nearest_number_of_layers(total: int, ratio: float) -> None:
    count = shortgpt(ratio=ratio).options.layers(total)
    assert abs(count - total * ratio) <= 0.5 + 1e-9


def test_zero_removes_nothing() -> None:
    model = tiny_model("qwen2")
    layers = len(anatomy(model).layers)
    assert prune(model, ratio=0.0).kept_layers == list(range(layers))


def test_removing_every_layer_is_refused() -> None:
    with pytest.raises(PrunebenchError, match="all 2 layers would be removed"):
        prune(tiny_model("llama", num_hidden_layers=2), count=2)


def test_ratio_and_count_together_are_refused() -> None:
    with pytest.raises(ValueError, match="not both"):
        shortgpt(ratio=0.5, count=1)
