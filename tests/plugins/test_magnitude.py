"""Magnitude over the whole model: one threshold, exact counts, no matrix emptied."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunebench import Context, Method, PrunebenchError, anatomy, lowest_overall
from prunebench.plugin.host import load_plugins
from tiny import FAMILIES, tiny_model


@functools.cache
def registered() -> type[Method]:
    found: type[Method] = load_plugins()["method"]["magnitude"].value
    return found


def magnitude(**options: object) -> Method:
    return registered()(registered().Options.model_validate(options))


def prune(model, **options: object) -> Context:
    context = Context(None, 0, list(range(len(anatomy(model).layers))))
    with torch.no_grad():
        magnitude(**options).prune(model, context)
    return context


def weights(model) -> dict[str, torch.Tensor]:
    return {path: linear.weight for path, linear in Context(None, 0, []).linears(model).items()}


def by_sorting(scores: list[list[float]], share: float, min_density: float) -> list[list[bool]]:
    """The definition in Python: protect each list's highest, remove the lowest of the rest."""
    count = int(sum(map(len, scores)) * share)
    free = []
    for which, values in enumerate(scores):
        order = sorted(range(len(values)), key=lambda place: (values[place], place))
        free += [
            (values[i], which, i)
            for i in order[: len(values) - math.ceil(len(values) * min_density)]
        ]
    gone = {(which, place) for _, which, place in sorted(free)[:count]}
    return [
        [(which, place) in gone for place in range(len(values))]
        for which, values in enumerate(scores)
    ]


# Few distinct values, so that ties decide; and values that differ in the last of their 32 bits.
NEAR_ONE = [
    float(torch.tensor(1.0).view(torch.int32).add(step).view(torch.float32))
    for step in range(-3, 4)
]
VALUES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, *NEAR_ONE]),
    st.floats(-1e3, 1e3, width=32, allow_nan=False),
)


@settings(max_examples=200)
@given(
    st.lists(st.lists(VALUES, min_size=1, max_size=12), min_size=1, max_size=5),
    st.floats(0, 0.99),
    st.floats(0, 1),
)
def test_the_lowest_overall_are_those_of_a_sort(
    scores: list[list[float]], share: float, min_density: float
) -> None:
    tensors = {str(which): torch.tensor([values]) for which, values in enumerate(scores)}
    most = sum(len(values) - math.ceil(len(values) * min_density) for values in scores)
    if int(sum(map(len, scores)) * share) > most:
        with pytest.raises(PrunebenchError, match="cannot be removed while every matrix keeps"):
            next(lowest_overall(tensors, torch.clone, share, min_density=min_density))
        return
    masks = dict(lowest_overall(tensors, torch.clone, share, min_density=min_density))
    assert [mask[0].tolist() for mask in masks.values()] == by_sorting(scores, share, min_density)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_exactly_the_share_is_removed_and_it_is_the_smallest(family: str, share: float) -> None:
    model, dense = tiny_model(family), weights(tiny_model(family))
    for scale, weight in enumerate(weights(model).values(), start=1):
        weight.mul_(scale / 10)  # so that matrices lose different shares
    dense = {path: weight.clone() for path, weight in weights(model).items()}
    prune(model, scope="global", sparsity=share, min_density=0)
    gone = torch.cat([(weight == 0).flatten() for weight in weights(model).values()])
    before = torch.cat([weight.abs().flatten() for weight in dense.values()])
    assert int(gone.sum()) == int(gone.numel() * share)
    if share:
        assert before[~gone].min() >= before[gone].max()
    for path, weight in weights(model).items():
        assert torch.equal(weight[weight != 0], dense[path][weight != 0]), (
            "survivors are bit-identical"
        )


def test_no_matrix_is_emptied_and_the_count_stays_exact() -> None:
    model = tiny_model("llama")
    path, small = next(iter(weights(model).items()))
    small.mul_(1e-4)
    context = prune(model, scope="global", sparsity=0.5)
    assert int((small != 0).sum()) == math.ceil(small.numel() * 0.01)
    total = sum(weight.numel() for weight in weights(model).values())
    assert sum(int((weight == 0).sum()) for weight in weights(model).values()) == total // 2
    assert context.notes["lowest_density_in"] == path
    assert context.notes["lowest_density"] == pytest.approx(
        math.ceil(small.numel() * 0.01) / small.numel()
    )


def test_more_than_the_density_allows_is_refused_with_the_model_unchanged() -> None:
    model, dense = tiny_model("opt"), tiny_model("opt")
    with pytest.raises(PrunebenchError, match=r"cannot be removed while every matrix keeps 0\.4"):
        prune(model, scope="global", sparsity=0.7, min_density=0.4)
    assert all(map(torch.equal, model.parameters(), dense.parameters()))


def test_half_precision_and_repetition_choose_the_same() -> None:
    model, half = tiny_model("qwen2").bfloat16().float(), tiny_model("qwen2").bfloat16()
    for each in (model, half):
        prune(each, scope="global", sparsity=0.5)
    masks = [weight == 0 for weight in weights(model).values()]
    assert all(map(torch.equal, masks, (weight == 0 for weight in weights(half).values())))
    prune(model, scope="global", sparsity=0.5)
    assert all(map(torch.equal, masks, (weight == 0 for weight in weights(model).values())))


def test_masks_of_a_higher_share_contain_those_of_a_lower() -> None:
    found = []
    for share in (0.3, 0.6):
        model = tiny_model("gpt_neox")
        prune(model, scope="global", sparsity=share)
        found.append(torch.cat([(weight == 0).flatten() for weight in weights(model).values()]))
    assert bool((found[1] | ~found[0]).all())


def test_weights_that_are_nan_name_the_linear() -> None:
    model = tiny_model("llama")
    anatomy(model).layers[2].mlp.up_proj.weight[3, 4] = float("nan")
    with pytest.raises(PrunebenchError, match=r"model\.layers\.2\.mlp\.up_proj: a score is NaN"):
        prune(model, scope="global")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"sparsity": "2:4"}, "group by group"), ({"mode": "reference"}, "no global threshold")],
)
def test_options_that_contradict_the_global_scope_are_refused(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        magnitude(scope="global", **options)


def test_only_the_global_scope_refuses_allocations_and_streaming() -> None:
    def refused(**options: object) -> tuple[str | None, str | None]:
        parsed = registered().Options.model_validate(options)
        return registered().refuses_allocation(parsed), registered().refuses_streaming(parsed)

    assert refused() == (None, None)
    allocation, streaming = refused(scope="global")
    assert "`scope: global` decides it" in str(allocation)
    assert "compares the weights of all layers" in str(streaming)
    allocation, streaming = refused(layers=[1, 2])
    assert "leave weights out" in str(allocation)
    assert streaming is None


def test_progress_of_the_global_scope_counts_linears() -> None:
    model = tiny_model("llama")
    seen: list[tuple[int, int]] = []
    context = Context(None, 0, [0, 1, 2, 3], lambda done, total: seen.append((done, total)))
    with torch.no_grad():
        magnitude(scope="global").prune(model, context)
    assert seen == [(done, 28) for done in range(1, 29)]
