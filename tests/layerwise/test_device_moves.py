"""Tensors move, however deep in the arguments of a layer."""

from __future__ import annotations

import torch

from prunebench.layerwise.device_moves import moved


def test_all_tensors_that_a_layer_is_called_with_move() -> None:
    value = {"mask": torch.zeros(2), "pair": (torch.zeros(1), [None, torch.ones(1)]), "flag": True}
    result = moved(value, torch.device("meta"))
    assert (
        result["mask"].device.type
        == result["pair"][0].device.type
        == result["pair"][1][1].device.type
        == "meta"
    )
    assert (result["pair"][1][0], result["flag"]) == (None, True)
    assert moved(value, None) is value
