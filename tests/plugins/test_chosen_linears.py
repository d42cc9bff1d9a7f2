"""`layers` and `linears`: every layer-wise method prunes what they choose and nothing else."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from prunebench import Context, Method, PrunebenchError, anatomy
from prunebench.plugin.host import load_plugins
from prunebench.plugin.registry import Registry
from prunebench.suite.load import check_suite
from prunebench.suite.plan import plan
from prunebench.suite.source import source_of
from tiny import FAMILIES, tiny_model

METHODS = ("random", "magnitude", "wanda", "sparsegpt")


@cache
def registry() -> Registry:
    return load_plugins()


def build(name: str, **options: Any) -> Method:
    cls = registry()["method"][name].value
    return cls(cls.Options.model_validate({"sparsity": 0.5, **options}))


def prune(model: Any, name: str, **options: Any) -> Context:
    ids = torch.randint(0, 99, (2, 16), generator=torch.Generator().manual_seed(5))
    context = Context(ids, 0, list(range(len(anatomy(model).layers))))
    with torch.no_grad():
        build(name, **options).prune(model, context)
    return context


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {
        path: linear.weight.detach() for path, linear in Context(None, 0, []).linears(model).items()
    }


def changed(model: Any, family: str) -> set[str]:
    """The paths of the linears that differ from the dense model."""
    dense = weights(tiny_model(family))
    return {path for path, weight in weights(model).items() if not torch.equal(weight, dense[path])}


def of(model: Any, layers: list[int], text: str = "") -> set[str]:
    prefix = anatomy(model).layers_path
    return {
        path
        for path in weights(model)
        if int(path.removeprefix(f"{prefix}.").split(".")[0]) in layers and text in path
    }


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_chosen_layers_change(name: str, family: str) -> None:
    model = tiny_model(family)
    prune(model, name, layers=[1, 3])
    assert changed(model, family) == of(model, [1, 2])
    for path in of(model, [1, 2]):
        zeros = float((weights(model)[path] == 0).float().mean())
        assert zeros == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([0, 1], [0]),
        ([2, None], [2, 3]),
        ([None, -1], [0, 1, 2]),
        ([-1, None], [3]),
        ([-3, -1], [1, 2]),
        ([1, -1], [1, 2]),
        ([1, 99], [1, 2, 3]),
        ([None, None], [0, 1, 2, 3]),
        (None, [0, 1, 2, 3]),
    ],
)
def test_limits_are_those_of_a_slice(layers: Any, expected: list[int]) -> None:
    model = tiny_model("llama")
    prune(model, "magnitude", layers=layers)
    assert changed(model, "llama") == of(model, expected)


@pytest.mark.parametrize("name", METHODS)
def test_only_linears_with_the_text_in_their_name_change(name: str) -> None:
    model = tiny_model("llama")
    prune(model, name, linears=["k_proj", "mlp.up"], layers=[0, 2])
    assert changed(model, "llama") == of(model, [0, 1], "k_proj") | of(model, [0, 1], "up_proj")


def test_a_part_of_the_group_of_an_input_gets_what_it_gets_in_the_whole() -> None:
    """q, k and v share one Hessian: pruning k alone gives the same k."""
    for family in ("llama", "opt"):
        whole, part = tiny_model(family), tiny_model(family)
        prune(whole, "sparsegpt", layers=[0, 1])
        prune(part, "sparsegpt", layers=[0, 1], linears=["k_proj"])
        [path] = of(part, [0], "k_proj")
        alone, among = weights(part)[path], weights(whole)[path]
        assert torch.equal(alone == 0, among == 0)
        torch.testing.assert_close(alone, among)


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_measured_behind_dense_ones_if_those_are_not_pruned(family: str) -> None:
    model, first = tiny_model(family), tiny_model(family)
    prune(model, "wanda", layers=[2, 3])
    # The same by hand: input norms of layer 2 in the dense model.
    seen: dict[str, torch.Tensor] = {}
    layer = anatomy(first).layers[2]
    for name, linear in anatomy(first).linears(layer).items():
        linear.register_forward_pre_hook(
            lambda _, args, name=name: seen.update({name: args[0].flatten(0, -2)})
        )
    ids = torch.randint(0, 99, (2, 16), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        first(ids)
    for name, linear in anatomy(first).linears(layer).items():
        score = linear.weight.abs() * seen[name].norm(dim=0)
        gone = score.argsort(dim=1, stable=True)[:, : score.shape[1] // 2]
        expected = linear.weight.detach().scatter(1, gone, 0.0)
        pruned = anatomy(model).layers[2].get_submodule(name).weight
        assert float((pruned == expected).float().mean()) > 0.999  # a near-tie may fall otherwise


def test_layers_behind_the_last_chosen_one_do_not_run() -> None:
    model = tiny_model("llama")
    runs = [0] * 4
    for index, layer in enumerate(anatomy(model).layers):
        layer.self_attn.q_proj.register_forward_hook(  # capturing calls the layers themselves
            lambda *_, index=index: runs.__setitem__(index, runs[index] + 1)
        )
    prune(model, "wanda", layers=[1, 2])
    assert runs[0] >= 1
    assert runs[2:] == [0, 0]


def test_the_global_scope_compares_the_chosen_weights() -> None:
    model = tiny_model("llama")
    prune(model, "magnitude", scope="global", linears=["mlp"], min_density=0)
    assert changed(model, "llama") == of(model, [0, 1, 2, 3], "mlp")
    mlp = [weights(model)[path] for path in of(model, [0, 1, 2, 3], "mlp")]
    total = sum(weight.numel() for weight in mlp)
    assert sum(int((weight == 0).sum()) for weight in mlp) == total // 2


@pytest.mark.parametrize("name", METHODS)
def test_what_chooses_nothing_is_refused_with_what_there_is(name: str) -> None:
    with pytest.raises(PrunebenchError, match=r"layers: \[7, 9\] chooses none of 4 decoder layers"):
        prune(tiny_model("llama"), name, layers=[7, 9])
    with pytest.raises(
        PrunebenchError, match="no linear of the layers has 'q_prj' in its"
    ) as caught:
        prune(tiny_model("llama"), name, linears=["up_proj", "q_prj"])
    assert "self_attn.q_proj, self_attn.k_proj" in str(caught.value.hint)


def cells(method: Any) -> list[Any]:
    data = {
        "name": "s",
        "models": "tiny-llama",
        "methods": [method],
        "calibration": {"corpus": "tiny-text", "windows": 2, "length": 32},
    }
    suite = check_suite(source_of(data, "s.yaml"), registry())
    return list(plan(suite, registry()).cells[1:])


def test_a_suite_takes_one_range_or_a_list_of_them() -> None:
    found = cells({"wanda": {"layers": [1, 3]}})
    assert [cell.method.options["layers"] for cell in found] == [[1, 3]]
    found = cells({"wanda": {"layers": [[0, 2], [2, None], None], "linears": [["mlp"], None]}})
    assert len({cell.id for cell in found}) == 6
    assert cells({"wanda": {"layers": None}})[0].id == cells("wanda")[0].id


@pytest.mark.parametrize("layers", [[3, 3], [4, 1], [-1, -2]])
def test_a_range_that_is_empty_for_every_model_is_refused_when_planned(layers: list[int]) -> None:
    with pytest.raises(PrunebenchError, match=r"wanda\.layers.*holds no layer"):
        cells({"wanda": {"layers": layers}})


def test_an_allocation_needs_all_linears() -> None:
    for choice in ({"layers": [1, 2]}, {"linears": ["mlp"]}):
        with pytest.raises(PrunebenchError, match="leave weights out that an allocation counts"):
            cells({"wanda": {"allocation": "owl", **choice}})
