"""The statistics of a linear's input, for inputs made in the test."""

from __future__ import annotations

import pytest
import torch

from prunebench.layerwise.statistics import Hessian


@pytest.mark.parametrize("panel", [128, 512])
def test_bfloat16_inputs_give_a_float32_hessian_and_torchs_precision_is_restored(
    panel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunebench.layerwise.statistics.WIDE_PANEL", panel)
    before = torch.backends.mkldnn.matmul.fp32_precision
    inputs = torch.randn(300, 320, generator=torch.Generator().manual_seed(0)).bfloat16()
    hessian = Hessian(320, torch.device("cpu"))
    hessian.add(inputs, 2)
    exact = inputs.double().t() @ inputs.double()
    torch.testing.assert_close(hessian.result().double(), exact, rtol=1e-4, atol=1e-4)
    assert torch.backends.mkldnn.matmul.fp32_precision == before
