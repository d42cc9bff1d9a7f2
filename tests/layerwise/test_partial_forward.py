"""The model in pieces gives what the whole gives, and its bounds bound."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunebench import Block, PrunebenchError
from prunebench.layerwise import partial_forward as module
from prunebench.layerwise.partial_forward import Stream
from prunebench.model import batches
from prunebench.model.surgery import remove_blocks
from tiny import FAMILIES, tiny_model


def tokens(model, windows: int = 3, length: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, model.config.vocab_size, (windows, length), generator=generator)


@torch.no_grad()
def ends(stream: Stream, without=()) -> list[torch.Tensor]:
    """The last layer's output of every batch; ``without``: (layer, kind) pairs."""
    states = stream.start()
    for layer in range(stream.layers):
        kinds = {kind for index, kind in without if index == layer}
        states = [stream.run(layer, batch, state, kinds) for batch, state in enumerate(states)]
    return states


@torch.no_grad()
def loss(stream: Stream, without=()) -> float:
    found = ends(stream, without)
    return sum(stream.nll(batch, end) for batch, end in enumerate(found)) / stream.targets


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_the_models_own(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(batches.BATCH_TOKENS, "cpu", 32)  # two windows a batch, and one left over
    monkeypatch.setitem(module._LOGITS, "cpu", 7 * 320)  # seven positions at a time
    model = tiny_model(family)
    ids = tokens(model)
    assert loss(Stream(model, ids)) == pytest.approx(float(model(ids, labels=ids).loss), rel=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        {"word_embed_proj_dim": 24},
        {"do_layer_norm_before": False},
        {"word_embed_proj_dim": 24, "do_layer_norm_before": False},
    ],
)
def test_the_variants_of_opt_project_and_normalise_as_they_do(config: dict[str, object]) -> None:
    model = tiny_model("opt", **config)
    ids = tokens(model)
    assert loss(Stream(model, ids)) == pytest.approx(float(model(ids, labels=ids).loss), rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "gone", [{Block(1, "attention")}, {Block(2, "mlp")}, {Block(0, "attention"), Block(0, "mlp")}]
)
def test_a_layer_without_a_sub_block_is_the_layer_that_lost_it(
    family: str, gone: set[Block]
) -> None:
    model = tiny_model(family)
    ids = tokens(model)
    before = dict(model.named_modules())
    found = loss(Stream(model, ids), gone)
    assert dict(model.named_modules()) == before
    smaller = copy.deepcopy(model)
    remove_blocks(smaller, gone)
    assert found == pytest.approx(float(smaller(ids, labels=ids).loss), rel=1e-5)
    assert loss(Stream(smaller, ids)) == pytest.approx(found, rel=1e-6)


def test_a_post_norm_model_cannot_lose_a_sub_block() -> None:
    model = tiny_model("opt", do_layer_norm_before=False)
    with pytest.raises(PrunebenchError, match="normalises after adding"):
        loss(Stream(model, tokens(model)), {Block(0, "mlp")})


@pytest.mark.parametrize("family", FAMILIES)
def test_where_it_is_taken_the_bound_is_the_loss(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SUBSET", 8)
    model = tiny_model(family)
    stream = Stream(model, tokens(model, windows=2))
    end = ends(stream)[0]
    with torch.no_grad():
        tangent = stream.tangent(0, end)
        assert tangent is not None and len(tangent.subset) < 320 / 4
        assert stream.bound(0, end, tangent) == pytest.approx(stream.nll(0, end), rel=1e-6)


@settings(max_examples=30)
@given(st.sampled_from(FAMILIES), st.integers(0, 1000), st.floats(0.01, 30))
def test_elsewhere_the_bound_is_below_the_loss(family: str, seed: int, distance: float) -> None:
    model = tiny_model(family).double()
    stream = Stream(model, tokens(model, windows=1))
    end = ends(stream)[0]
    other = end + distance * torch.randn(
        end.shape, generator=torch.Generator().manual_seed(seed), dtype=end.dtype
    )
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SUBSET", 8)
        tangent = stream.tangent(0, end)
        assert tangent is not None
        bound, exact = stream.bound(0, other, tangent), stream.nll(0, other)
    assert 0 < bound < exact


def test_a_small_vocabulary_needs_no_bound() -> None:
    model = tiny_model("llama")
    stream = Stream(model, tokens(model))
    with torch.no_grad():
        assert stream.tangent(0, ends(stream)[0]) is None


def test_the_models_own_dtype_rounds_each_tokens_loss() -> None:
    model = tiny_model("llama").bfloat16()
    ids = tokens(model, windows=1)
    stream = Stream(model, ids)
    end = ends(stream)[0]
    with torch.no_grad():
        logits = model(ids).logits[0, :-1]
        rounded = torch.nn.functional.cross_entropy(logits.T[None], ids[:, 1:], reduction="none")
        wide = torch.nn.functional.cross_entropy(logits.float(), ids[0, 1:], reduction="none")
        assert rounded.dtype == torch.bfloat16
        assert stream.nll(0, end, model_dtype=True) == pytest.approx(
            float(rounded.double().sum()), rel=1e-9
        )
        assert stream.nll(0, end) == pytest.approx(float(wide.double().sum()), rel=1e-6)
    assert float(rounded.double().sum()) != pytest.approx(float(wide.double().sum()), rel=1e-6)


def test_work_is_counted_in_passes() -> None:
    model = tiny_model("llama")
    stream = Stream(model, tokens(model))
    loss(stream)
    assert (stream.decoder_passes, stream.head_passes) == (1, 1)
    loss(stream, {Block(1, "mlp")})
    assert (stream.decoder_passes, stream.head_passes) == (1.875, 2)  # seven of eight sub-blocks
    loss(stream, {Block(1, "mlp"), Block(1, "attention")})
    assert (stream.decoder_passes, stream.head_passes) == (2.625, 3)


def test_layers_can_compute_elsewhere() -> None:
    model = tiny_model("qwen2")
    ids = tokens(model)
    assert loss(Stream(model, ids, torch.device("cpu"))) == loss(Stream(model, ids))


def test_a_window_of_one_token_is_refused() -> None:
    model = tiny_model("llama")
    with pytest.raises(PrunebenchError, match="nothing to predict"):
        Stream(model, tokens(model, length=1))
