"""Check the scores and masks that a method returns; torch would broadcast or misread wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from prunebench.errors import PluginError
from prunebench.layerwise.masks import NOT_FINITE_HINT, not_finite
from prunebench.plugin.plugin_code import returned_at


def check_score(score: Any, weight: torch.Tensor, function: Callable[..., Any]) -> None:
    """Raise PluginError unless ``score`` is a finite number for each weight [out, in].

    ``function`` returned it; the error names its line.
    """
    place = returned_at(function)
    _check_shape("score", score, weight, place)
    if not score.is_floating_point():
        raise PluginError(
            f"score returned {_dtype(score)}, expected float32",
            hint="return a number for every weight, of which the lowest are removed; to choose the"
            " weights yourself, override `mask`"
            if score.dtype == torch.bool
            else "return score.float()",
            place=place,
        )
    if fault := not_finite(score):
        raise PluginError(
            f"score returned {fault} values that are not finite", hint=NOT_FINITE_HINT, place=place
        )


def check_mask(mask: Any, weight: torch.Tensor, function: Callable[..., Any]) -> None:
    """Raise PluginError unless ``mask`` is bool and has the shape of ``weight``."""
    place = returned_at(function)
    _check_shape("mask", mask, weight, place)
    if mask.dtype != torch.bool:
        raise PluginError(
            f"mask returned {_dtype(mask)}, expected bool",
            hint="return True for the weights to remove; to return numbers, override `score`",
            place=place,
        )


def _check_shape(name: str, value: Any, weight: torch.Tensor, place: str | None) -> None:
    if not isinstance(value, torch.Tensor):
        raise PluginError(
            f"{name} returned {value!r:.60}, expected a tensor {list(weight.shape)}",
            hint=f"end `{name}` with a `return`" if value is None else None,
            place=place,
        )
    if value.shape != weight.shape:
        raise PluginError(
            f"{name} returned {list(value.shape)}, expected {list(weight.shape)}",
            hint="return one value for every weight [out, in]",
            place=place,
        )


def _dtype(value: torch.Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
