"""What a pruner is told about a linear."""

from __future__ import annotations

import pytest
import torch

from prunebench import LinearStats, PrunebenchError


def test_reading_a_statistic_that_was_not_asked_for_says_how_to_ask() -> None:
    stats = LinearStats(0, "x", torch.Generator())
    with pytest.raises(PrunebenchError, match="reads `hessian`") as raised:
        _ = stats.hessian
    assert '{"hessian"}' in str(raised.value.hint)
    with pytest.raises(PrunebenchError, match="reads `input_norm`"):
        _ = stats.input_norm
