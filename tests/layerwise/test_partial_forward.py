"""The model in pieces computes the same as the whole model, and bounds are below the loss."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunebench import Block, PrunebenchError, anatomy
from prunebench.layerwise import partial_forward
from prunebench.layerwise.partial_forward import PartialForward
from prunebench.model import batches
from prunebench.model.surgery import remove_blocks
from prunebench.testing import any_type
from tiny import FAMILIES, tiny_model


def tokens(model, windows: int = 3, length: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, model.config.vocab_size, (windows, length), generator=generator)


@torch.no_grad()
def ends(forward: PartialForward, without=()) -> list[torch.Tensor]:
    """The last layer's output of every batch; ``without``: (layer, kind) pairs."""
    states = forward.start()
    for layer in range(forward.layers):
        kinds = {kind for index, kind in without if index == layer}
        states = [forward.run(layer, batch, state, kinds) for batch, state in enumerate(states)]
    return states


@torch.no_grad()
def loss(forward: PartialForward, without=()) -> float:
    found = ends(forward, without)
    return sum(forward.nll(batch, end) for batch, end in enumerate(found)) / forward.targets


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_the_models_own(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(batches.BATCH_TOKENS, "cpu", 32)  # two windows a batch, and one left over
    monkeypatch.setitem(partial_forward.LOGITS_AT_ONCE, "cpu", 7 * 320)  # seven positions at a time
    model = tiny_model(family)
    ids = tokens(model)
    assert loss(PartialForward(model, ids)) == pytest.approx(
        float(model(ids, labels=ids).loss), rel=1e-5
    )


@pytest.mark.parametrize(
    "config",
    [
        {"word_embed_proj_dim": 24},
        {"do_layer_norm_before": False},
        {"word_embed_proj_dim": 24, "do_layer_norm_before": False},
    ],
)
def test_variants_of_opt_with_projections_and_post_norm_give_their_own_loss(
    config: dict[str, object],
) -> None:
    model = tiny_model("opt", **config)
    ids = tokens(model)
    assert loss(PartialForward(model, ids)) == pytest.approx(
        float(model(ids, labels=ids).loss), rel=1e-5
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "gone", [{Block(1, "attention")}, {Block(2, "mlp")}, {Block(0, "attention"), Block(0, "mlp")}]
)
def test_running_without_a_sub_block_equals_removing_it(family: str, gone: set[Block]) -> None:
    model = tiny_model(family)
    ids = tokens(model)
    before = dict(model.named_modules())
    found = loss(PartialForward(model, ids), gone)
    assert dict(model.named_modules()) == before
    smaller = copy.deepcopy(model)
    remove_blocks(smaller, gone)
    assert found == pytest.approx(float(smaller(ids, labels=ids).loss), rel=1e-5)
    assert loss(PartialForward(smaller, ids)) == pytest.approx(found, rel=1e-6)


def test_a_post_norm_model_cannot_lose_a_sub_block() -> None:
    model = tiny_model("opt", do_layer_norm_before=False)
    with pytest.raises(PrunebenchError, match="normalises after adding"):
        loss(PartialForward(model, tokens(model)), {Block(0, "mlp")})


@pytest.mark.parametrize("model_type", ["llama", "granite"])
def test_the_divergence_is_that_of_the_models_own_distributions(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Granite scales its logits, so that they are not the head of the final norm."""
    monkeypatch.setitem(batches.BATCH_TOKENS, "cpu", 32)
    monkeypatch.setitem(partial_forward.LOGITS_AT_ONCE, "cpu", 7 * 320)
    model = any_type.tiny_model(model_type)
    ids = tokens(model)
    forward = PartialForward(model, ids)
    variants = [Block(1, "mlp")], [Block(0, "attention")]
    dense, *others = (ends(forward, gone) for gone in ((), *variants))
    heads = forward.head_passes
    with torch.no_grad():
        by_batch = [
            forward.kl(batch, end, [each[batch] for each in others])
            for batch, end in enumerate(dense)
        ]
    found = [sum(costs) for costs in zip(*by_batch, strict=True)]
    assert forward.head_passes - heads == pytest.approx(3)
    own = model(ids).logits[:, :-1].log_softmax(-1)
    for value, gone in zip(found, variants, strict=True):
        smaller = copy.deepcopy(model)
        remove_blocks(smaller, gone)
        its = smaller(ids).logits[:, :-1].log_softmax(-1)
        assert value == pytest.approx(float((own.exp() * (own - its)).sum()), rel=1e-3)
        assert value > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_the_bound_is_the_loss_of_the_variant_it_was_made_from(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial_forward, "SUBSET", 8)
    model = tiny_model(family)
    forward = PartialForward(model, tokens(model, windows=2))
    end = ends(forward)[0]
    with torch.no_grad():
        bound = forward.lower_bound(0, end)
        assert bound is not None
        assert bound(end) == pytest.approx(forward.nll(0, end), rel=1e-6)


@settings(max_examples=30)
@given(st.sampled_from(FAMILIES), st.integers(0, 1000), st.floats(0.01, 30))
def test_the_bound_is_below_the_loss_of_any_other_variant(
    family: str, seed: int, distance: float
) -> None:
    model = tiny_model(family).double()
    forward = PartialForward(model, tokens(model, windows=1))
    end = ends(forward)[0]
    other = end + distance * torch.randn(
        end.shape, generator=torch.Generator().manual_seed(seed), dtype=end.dtype
    )
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(partial_forward, "SUBSET", 8)
        bound = forward.lower_bound(0, end)
        assert bound is not None
        assert 0 < bound(other) < forward.nll(0, other)


def test_a_small_vocabulary_needs_no_bound() -> None:
    model = tiny_model("llama")
    forward = PartialForward(model, tokens(model))
    with torch.no_grad():
        assert forward.lower_bound(0, ends(forward)[0]) is None


def test_the_models_own_dtype_rounds_each_tokens_loss() -> None:
    model = tiny_model("llama").bfloat16()
    ids = tokens(model, windows=1)
    forward = PartialForward(model, ids)
    end = ends(forward)[0]
    with torch.no_grad():
        logits = model(ids).logits[0, :-1]
        rounded = torch.nn.functional.cross_entropy(logits.T[None], ids[:, 1:], reduction="none")
        wide = torch.nn.functional.cross_entropy(logits.float(), ids[0, 1:], reduction="none")
        assert rounded.dtype == torch.bfloat16
        assert forward.nll(0, end, model_dtype=True) == pytest.approx(
            float(rounded.double().sum()), rel=1e-9
        )
        assert forward.nll(0, end) == pytest.approx(float(wide.double().sum()), rel=1e-6)
    assert float(rounded.double().sum()) != pytest.approx(float(wide.double().sum()), rel=1e-6)


def test_work_is_counted_in_passes() -> None:
    model = tiny_model("llama")
    forward = PartialForward(model, tokens(model))
    loss(forward)
    assert (forward.decoder_passes, forward.head_passes) == (1, 1)
    loss(forward, {Block(1, "mlp")})
    assert (forward.decoder_passes, forward.head_passes) == (1.875, 2)  # seven of eight sub-blocks
    loss(forward, {Block(1, "mlp"), Block(1, "attention")})
    assert (forward.decoder_passes, forward.head_passes) == (2.625, 3)


def test_layers_can_compute_elsewhere() -> None:
    model = tiny_model("qwen2")
    ids = tokens(model)
    assert loss(PartialForward(model, ids, torch.device("cpu"))) == loss(PartialForward(model, ids))


def test_a_window_of_one_token_is_refused() -> None:
    model = tiny_model("llama")
    with pytest.raises(PrunebenchError, match="nothing to predict"):
        PartialForward(model, tokens(model, length=1))


def test_a_window_of_two_tokens_predicts_one() -> None:
    model = tiny_model("llama")
    ids = tokens(model, length=2)
    assert PartialForward(model, ids).targets == 3
    assert loss(PartialForward(model, ids)) == pytest.approx(
        float(model(ids, labels=ids).loss), rel=1e-5
    )


@torch.no_grad()
def test_a_bound_computes_the_predicted_and_the_most_probable_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(partial_forward, "SUBSET", 8)
    monkeypatch.setitem(partial_forward.LOGITS_AT_ONCE, "cpu", 7 * 320)
    model = tiny_model("llama")
    ids = tokens(model, windows=2)
    forward = PartialForward(model, ids)
    bound = forward.lower_bound(0, ends(forward)[0])
    assert bound is not None
    _, tangent = bound.args  # type: ignore[attr-defined]
    mass = model(ids).logits[:, :-1].softmax(-1).sum((0, 1))
    predicted = set(ids[:, 1:].flatten().tolist())
    others = [token for token in mass.argsort(descending=True).tolist() if token not in predicted]
    assert tangent.subset.tolist() == sorted(predicted | set(others[:8]))


@torch.no_grad()
def test_a_bound_costs_three_runs_of_the_head_and_a_small_part_for_each_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(partial_forward, "SUBSET", 8)
    model = tiny_model("llama")
    forward = PartialForward(model, tokens(model, windows=2))
    end = ends(forward)[0]
    bound = forward.lower_bound(0, end)
    assert forward.head_passes == 3
    assert bound is not None
    bound(end)
    assert forward.head_passes == 3
    forward.nll(0, end)
    assert forward.head_passes == 4


@torch.no_grad()
@pytest.mark.parametrize(("others", "pays"), [(48, True), (49, False)])
def test_a_bound_pays_from_four_times_the_tokens_that_it_computes(
    others: int, pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 320 tokens a bound may compute 80, of which 32 are predicted here."""
    model = tiny_model("llama")
    forward = PartialForward(model, torch.arange(33)[None])
    monkeypatch.setattr(partial_forward, "SUBSET", others)
    assert (forward.lower_bound(0, ends(forward)[0]) is not None) == pays


@torch.no_grad()
@pytest.mark.parametrize(("rows", "parts"), [(7, [7, 7, 7, 7, 7, 7, 3]), (0, [1] * 45)])
def test_the_head_runs_on_as_many_tokens_as_are_allowed_at_once(
    rows: int, parts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(partial_forward.LOGITS_AT_ONCE, "cpu", rows * 320 + 3)
    model = tiny_model("llama")
    forward = PartialForward(model, tokens(model))
    end = ends(forward)[0]
    seen: list[int] = []
    anatomy(model).head.register_forward_hook(lambda _, given, out: seen.append(len(given[0])))
    forward.nll(0, end)
    assert seen == parts


@pytest.mark.parametrize("model_type", ["granite", "gemma2", "cohere", "bloom"])
def test_logits_that_a_model_scales_or_caps_are_its_own(model_type: str) -> None:
    model = any_type.tiny_model(model_type)
    if hasattr(model.config, "logits_scaling"):
        model.config.logits_scaling = 3.0
    tokens = torch.randint(4, 150, (2, 10), generator=torch.Generator().manual_seed(0))
    forward = PartialForward(model, tokens)
    [hidden] = forward.start()
    for layer in range(forward.layers):
        hidden = forward.run(layer, 0, hidden)
    logits = model(tokens).logits[:, :-1].flatten(0, 1)
    wanted = torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="sum")
    assert forward.nll(0, hidden) == pytest.approx(float(wanted), rel=1e-5)


# Of these, Bloom's calls have an entry for each head of each window, Gemma's layers different
# masks, Qwen's and Mixtral's experts; Cohere and Falcon run attention and MLP side by side.
OTHERS = ("bloom", "cohere", "falcon", "gemma2", "mistral", "mixtral", "mpt", "opt", "qwen2_moe")


@torch.no_grad()
@pytest.mark.parametrize("model_type", sorted({*FAMILIES, *OTHERS}))
def test_variants_run_together_as_they_run_alone(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(batches.BATCH_TOKENS, "cpu", 64)  # two windows a batch, and one left over
    model = any_type.tiny_model(model_type)
    forward = PartialForward(model, tokens(model) % 150)
    generator = torch.Generator().manual_seed(5)
    for batch, start in enumerate(forward.start()):
        states = [
            start + start.std() * torch.randn(start.shape, generator=generator) for _ in range(3)
        ]
        for number in (3, 2, 3):
            for layer in range(forward.layers):
                gone = ["mlp"] if layer == 1 else []
                alone = [forward.run(layer, batch, state, gone) for state in states[:number]]
                passes = forward.decoder_passes
                together = forward.run(layer, batch, torch.cat(states[:number]), gone)
                torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)
                share = number * len(start) / (3 * forward.layers)
                assert forward.decoder_passes - passes == pytest.approx(
                    share / 2 if gone else share
                )


@torch.no_grad()
def test_as_many_variants_run_together_as_fill_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    ids = tokens(model)  # 3 windows of 16 tokens
    for limit, number in ((15, 1), (50, 3), (95, 2), (96, 2), (1024, 21)):
        monkeypatch.setitem(batches.BATCH_TOKENS, "cpu", limit)
        assert PartialForward(model, ids).variants_at_once == number
    monkeypatch.setitem(batches.BATCH_TOKENS, "cpu", 1024)
    assert PartialForward(model.double(), ids).variants_at_once == 21
    for dtype in (torch.bfloat16, torch.float16):
        assert PartialForward(model.to(dtype), ids).variants_at_once == 1
