"""BlockPruner: the choices of the plain greedy loop over whole models, with less work."""

from __future__ import annotations

import copy
import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunebench import Block, Context, Method, PrunebenchError, anatomy
from prunebench.layerwise import partial_forward
from prunebench.model import batches
from prunebench.model.surgery import remove_blocks
from prunebench.plugin.host import load_plugins
from prunebench_plugins.removal_search import Search
from tiny import FAMILIES, tiny_model

KINDS = {"mix": ("attention", "mlp"), "mha": ("attention",), "mlp": ("mlp",)}


@functools.cache
def registered() -> type[Method]:
    found: type[Method] = load_plugins()["method"]["blockpruner"].value
    return found


def blockpruner(**options: object) -> Method:
    return registered()(registered().Options.model_validate(options))


def tokens(model, windows: int = 3) -> torch.Tensor:
    return torch.randint(
        0, model.config.vocab_size, (windows, 12), generator=torch.Generator().manual_seed(2)
    )


def prune(model, **options: object) -> Context:
    context = Context(tokens(model), 0, list(range(len(anatomy(model).layers))))
    with torch.no_grad():
        blockpruner(**options).prune(model, context)
    return context


def own_loss(model, ids: torch.Tensor) -> float:
    return float(
        torch.stack([model(window[None], labels=window[None]).loss for window in ids])
        .double()
        .mean()
    )


def released_loss(model, ids: torch.Tensor) -> float:
    """Means per window of losses in the logits' dtype."""
    nlls = torch.nn.functional.cross_entropy(
        model(ids).logits[:, :-1].mT, ids[:, 1:], reduction="none"
    ).float()
    return float(nlls.mean(dim=1).mean())


@torch.no_grad()
def plain_greedy(model, blocks: str, count: int, loss=own_loss) -> tuple[list[str], list[float]]:
    """Every variant as a model of its own; ties remove attentions and lower layers first."""
    ids, order, losses = tokens(model), [], []
    left = [
        Block(layer, kind) for kind in KINDS[blocks] for layer in range(len(anatomy(model).layers))
    ]
    gone: list[Block] = []
    for _ in range(count):
        found = []
        for unit in left:
            variant = copy.deepcopy(model)
            remove_blocks(variant, [*gone, unit])
            found.append(loss(variant, ids))
        best = left.pop(found.index(min(found)))
        gone.append(best)
        order.append(str(best))
        losses.append(math.exp(min(found)))
    return order, losses


@pytest.mark.parametrize("family", FAMILIES)
def test_the_choices_are_those_of_the_plain_loop(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial_forward, "SUBSET", 8)
    monkeypatch.setitem(batches.BATCH_TOKENS, "cpu", 12)  # a window a batch
    model = tiny_model(family)
    order, perplexities = plain_greedy(model, "mix", 5)
    notes = prune(model, count=5).notes
    assert notes["removed_in_order"] == order
    assert notes["perplexity_after_each"] == pytest.approx(perplexities, rel=1e-5)


@settings(max_examples=12)
@given(
    st.sampled_from(FAMILIES),
    st.integers(0, 10_000),
    st.integers(1, 4),
    st.sampled_from(["mix", "mha", "mlp"]),
    st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from([4, 1 << 20]),
)
def test_the_choices_do_not_depend_on_what_is_skipped(
    family: str, seed: int, count: int, blocks: str, dtype: torch.dtype, subset: int
) -> None:
    model = tiny_model(family, seed).to(dtype)
    order, _ = plain_greedy(model, blocks, count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partial_forward, "SUBSET", subset)
        patch.setitem(batches.BATCH_TOKENS, "cpu", 12)
        assert prune(model, count=count, blocks=blocks).notes["removed_in_order"] == order


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reference_mode_is_the_released_loop(dtype: torch.dtype) -> None:
    model = tiny_model("llama").to(dtype)
    order, perplexities = plain_greedy(model, "mix", 3, released_loss)
    notes = prune(model, count=3, mode="reference").notes
    assert notes["removed_in_order"] == order
    assert notes["perplexity_after_each"] == pytest.approx(perplexities, rel=1e-5)
    assert notes["naive_evaluations"] == 8 + 7 + 6
    assert notes["head_evaluations"] == notes["naive_evaluations"]


@pytest.mark.parametrize("mode", ["clean", "reference"])
def test_ties_remove_attentions_first_and_then_lower_layers(mode: str) -> None:
    model = tiny_model("llama")
    for layer in anatomy(model).layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    dense = math.exp(own_loss(model, tokens(model)))
    ids = torch.arange(8)[None]
    logits = model(ids).logits
    notes = prune(model, count=6, mode=mode).notes
    assert notes["removed_in_order"] == [
        "0.attention",
        "1.attention",
        "2.attention",
        "3.attention",
        "0.mlp",
        "1.mlp",
    ]
    assert notes["perplexity_after_each"] == pytest.approx([dense] * 6, rel=1e-5)
    torch.testing.assert_close(model(ids).logits, logits)


def test_most_of_the_work_is_saved() -> None:
    model = tiny_model("llama", num_hidden_layers=12)
    notes = prune(model, count=2).notes
    assert notes["naive_evaluations"] == 24 + 23
    assert notes["decoder_evaluations"] < 0.65 * notes["naive_evaluations"]


def test_bounds_save_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """On text that the model generates: with random tokens all units matter about equally."""
    models = [tiny_model("qwen2", num_hidden_layers=8) for _ in range(2)]
    for model in models:
        anatomy(model).head.weight.mul_(3)
    kwargs = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False, "pad_token_id": 1}
    text = models[0].generate(torch.tensor([[3], [5], [7]]), **kwargs)
    without, bounded = (Context(text, 0, list(range(8))) for _ in models)
    with torch.no_grad():
        blockpruner(count=2).prune(models[0], without)
        monkeypatch.setattr(partial_forward, "SUBSET", 40)
        monkeypatch.setitem(batches.BATCH_TOKENS, "cpu", 21)
        blockpruner(count=2).prune(models[1], bounded)
    assert bounded.notes["removed_in_order"] == without.notes["removed_in_order"]
    assert without.notes["head_evaluations"] == without.notes["naive_evaluations"] == 16 + 15
    assert bounded.notes["head_evaluations"] < 0.6 * without.notes["head_evaluations"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pruned_model_generates_with_a_cache(family: str) -> None:
    model = tiny_model(family)
    variant = copy.deepcopy(model)
    context = prune(model, count=4)
    named = [name.split(".") for name in context.notes["removed_in_order"]]
    remove_blocks(variant, [Block(int(layer), kind) for layer, kind in named])
    ids = torch.arange(1, 9)[None]
    torch.testing.assert_close(model(ids).logits, variant(ids).logits)
    kwargs = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    cached = model.generate(ids, use_cache=True, **kwargs)
    assert torch.equal(cached, model.generate(ids, use_cache=False, **kwargs))


@pytest.mark.parametrize("ratio", [0.1, 0.35])
@pytest.mark.parametrize("family", ["llama", "phi", "gpt_neox"])
def test_a_ratio_ends_at_the_first_step_that_reaches_it(family: str, ratio: float) -> None:
    def size(model) -> int:
        return sum(parameter.numel() for parameter in model.parameters())

    dense = tiny_model(family)
    model = copy.deepcopy(dense)
    steps = len(prune(model, ratio=ratio).notes["removed_in_order"])
    shorter = copy.deepcopy(dense)
    prune(shorter, count=steps - 1)
    assert 1 - size(model) / size(dense) >= ratio > 1 - size(shorter) / size(dense)


def test_layers_that_were_removed_before_keep_their_dense_names() -> None:
    model = tiny_model("llama")
    context = Context(tokens(model), 0, [0, 1, 2, 3])
    with torch.no_grad():
        context.remove_layers(model, [0])
        order, _ = plain_greedy(model, "mix", 2)
        blockpruner(count=2).prune(model, context)
    now = [name.split(".") for name in order]
    assert context.notes["removed_in_order"] == [f"{int(layer) + 1}.{kind}" for layer, kind in now]


def test_progress_counts_variants() -> None:
    model = tiny_model("llama")
    seen: list[tuple[int, int]] = []
    with torch.no_grad():
        context = Context(
            tokens(model), 0, [0, 1, 2, 3], lambda done, total: seen.append((done, total))
        )
        blockpruner(count=2).prune(model, context)
    assert seen == [(done, 8 + 7) for done in range(1, 16)]
    seen.clear()
    with torch.no_grad():
        blockpruner(count=1).prune(tiny_model("llama"), context)
    assert seen == [(done, 8) for done in range(1, 9)]


def test_zero_removes_nothing() -> None:
    model = tiny_model("llama")
    assert prune(model, count=0).notes["removed_in_order"] == []
    assert len(anatomy(model).blocks) == 8


def test_all_attentions_can_be_removed() -> None:
    model = tiny_model("llama")
    prune(model, blocks="mha", count=4)
    assert {block.kind for block in anatomy(model).blocks} == {"mlp"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 8}, r"8 units cannot be removed: of 8 \(mix\) at most 7 can"),
        ({"count": 5, "blocks": "mlp"}, r"5 units cannot be removed: of 4 \(mlp\) at most 4 can"),
        ({"ratio": 0.95}, "ratio 0.95 is out of reach: all 7 units"),
    ],
)
def test_removing_more_than_there_is_is_refused_before_any_work(
    options: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_early(*_: object) -> None:
        raise AssertionError("the model was run")

    monkeypatch.setattr(Context, "partial_forward", too_early)
    model = tiny_model("llama")
    with pytest.raises(PrunebenchError, match=message):
        prune(model, **options)
    assert len(anatomy(model).blocks) == 8


def test_a_loss_of_nan_names_the_unit() -> None:
    model = tiny_model("llama")
    anatomy(model).layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(
        PrunebenchError, match=r"the loss without layer \d's (attention|mlp) is NaN"
    ):
        prune(model, count=1)
    assert len(anatomy(model).blocks) == 8


def test_post_norm_models_are_refused() -> None:
    with pytest.raises(PrunebenchError, match="normalises after adding"):
        prune(tiny_model("opt", do_layer_norm_before=False), count=1)


def test_ratio_and_count_together_are_refused() -> None:
    with pytest.raises(ValueError, match="not both"):
        blockpruner(ratio=0.5, count=1)


def test_a_fifth_of_the_parameters_goes_if_nothing_is_said() -> None:
    usual = prune(tiny_model("llama")).notes["removed_in_order"]
    assert usual == prune(tiny_model("llama"), ratio=0.2).notes["removed_in_order"]
    assert len(usual) < len(prune(tiny_model("llama"), ratio=0.3).notes["removed_in_order"])


def parameters_of(model, *paths: str) -> int:
    return sum(
        parameter.numel()
        for layer in anatomy(model).layers
        for path in paths
        for parameter in layer.get_submodule(path).parameters()
    )


def test_a_ratio_that_takes_exactly_what_there_is_can_be_reached() -> None:
    model = tiny_model("llama")
    total = sum(parameter.numel() for parameter in model.parameters())
    attentions = parameters_of(model, "self_attn", "input_layernorm")
    prune(model, blocks="mha", ratio=attentions / total)
    assert {block.kind for block in anatomy(model).blocks} == {"mlp"}
    with pytest.raises(PrunebenchError, match="out of reach: all 4 units"):
        prune(tiny_model("llama"), blocks="mha", ratio=(attentions + 1) / total)


def test_progress_expects_the_variants_of_a_ratio() -> None:
    model = tiny_model("llama")
    seen: list[tuple[int, int]] = []
    total = sum(parameter.numel() for parameter in model.parameters())
    units = sum(
        parameter.numel() for layer in anatomy(model).layers for parameter in layer.parameters()
    )
    steps = math.ceil(0.3 * total * 8 / units)
    assert steps > 0.3 * total * 8 / units > 2
    context = Context(
        tokens(model), 0, [0, 1, 2, 3], lambda done, total: seen.append((done, total))
    )
    with torch.no_grad():
        blockpruner(ratio=0.3).prune(model, context)
    assert seen[0] == (1, sum(range(8 - steps + 1, 8 + 1)))


def test_a_perplexity_beyond_any_float_is_cut() -> None:
    model = tiny_model("llama", tie_word_embeddings=False)
    model.lm_head.weight.mul_(1e5)
    assert prune(model, count=1).notes["perplexity_after_each"] == [math.exp(700)]


@pytest.mark.parametrize(
    ("dtype", "slack"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-8), (torch.float16, 2**-11)]
)
def test_bounds_may_exceed_the_loss_by_the_rounding_of_the_models_type(
    dtype: torch.dtype, slack: float
) -> None:
    model = tiny_model("llama").to(dtype)
    context = Context(tokens(model), 0, [0, 1, 2, 3])
    with torch.no_grad():
        found = Search(model, context, [], lambda _: None).slack
    assert found == pytest.approx(slack)


def test_a_ratio_that_only_other_units_would_reach_is_an_error() -> None:
    """The seven largest units have 75 % of the parameters. Here an MLP is the last one, so 70 %."""
    model = tiny_model("llama", 1)
    prune(model, count=7)
    assert [block.kind for block in anatomy(model).blocks] == ["mlp"]
    with pytest.raises(PrunebenchError, match=r"ratio 0\.72 is out of reach: all 7"):
        prune(tiny_model("llama", 1), ratio=0.72)
