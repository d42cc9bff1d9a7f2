"""Chosen numbers become zero, whatever they were, and no other changes."""

from __future__ import annotations

import pytest
import torch

from prunebench import set_to_zero

TYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("turned", [False, True])
def test_only_the_chosen_numbers_become_zero(dtype: torch.dtype, turned: bool) -> None:
    values = torch.tensor([[1.5, -2.0, torch.nan], [-0.0, 3.0, -1.0]]).to(dtype)
    if dtype != torch.float8_e4m3fn:  # has no infinity
        values[1, 1] = torch.inf
    values = values.t() if turned else values
    where = torch.tensor([[True, True, True], [True, True, False]])
    where = where.t() if turned else where
    given = values.clone()
    assert set_to_zero(values, where) is values
    zeros = values[where].float()
    assert torch.equal(zeros, torch.zeros(5)) and not zeros.signbit().any()
    assert torch.equal(values[~where].float(), given[~where].float())


def test_a_part_of_a_parameter_becomes_zero() -> None:
    weight = torch.nn.Parameter(torch.ones(4, 6))
    with torch.no_grad():
        set_to_zero(weight[1:3, ::2], torch.tensor([[True, False, True], [False, True, False]]))
    assert (weight == 0).nonzero().tolist() == [[1, 0], [1, 4], [2, 2]]
