"""What modules of a layer read is seen in one layer for all, if all are of one kind."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from prunebench.model.layers import find_layers
from prunebench.model.meta_forward import on_meta, shared_reads
from tiny import FAMILIES, tiny_model


def watched(model: Any) -> list[dict[str, nn.Module]]:
    layers = model.get_submodule(find_layers(model).layers)
    return [
        {path: each for path, each in layer.named_modules() if isinstance(each, nn.Linear)}
        for layer in layers
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_layer_reads_alone_as_before_the_others(family: str) -> None:
    model = tiny_model(family)
    where = find_layers(model)
    first, *_ = shared_reads(model, where.decoder, watched(model))
    assert len(first) >= 4
    found = shared_reads(model, where.decoder, watched(model), alike=where.layers)
    assert found == [first] * 4


def test_a_copy_of_the_first_layer_leaves_the_model_as_it_is() -> None:
    model = tiny_model("llama")
    short = on_meta(model, first_of="model.layers")
    assert len(short.model.layers) == 1
    assert {parameter.device.type for parameter in short.parameters()} == {"meta"}
    assert len(model.model.layers) == 4
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


def test_only_the_first_of_layers_of_one_kind_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    kind = type(model.model.layers[0])
    forward, calls = kind.forward, []

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(kind, "forward", counted)
    shared_reads(model, "model", watched(model), alike="model.layers")
    assert len(calls) == 1


def test_all_layers_run_if_the_code_of_the_model_asks_for_another_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("llama")
    expected = shared_reads(model, "model", watched(model))
    forward = type(model.model).forward

    def asking(self: Any, *args: Any, **kwargs: Any) -> Any:
        assert self.layers[3] is not None
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model.model), "forward", asking)
    assert expected != [expected[0]] * 4, "other layers read other tensors"
    assert shared_reads(model, "model", watched(model), alike="model.layers") == expected
