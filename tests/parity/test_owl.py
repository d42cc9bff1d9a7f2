"""OWL agrees with its released code on SmolLM2: outlier ratios and shares."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from prunebench import Context, anatomy
from prunebench.plugin.host import load_plugins
from smollm2 import reference_file, reference_tokens, smollm2

pytestmark = pytest.mark.parity


def test_outlier_ratios_and_shares_agree(compare) -> None:
    official = json.loads(reference_file("related/owl.json").read_text())
    model = smollm2().model
    kind = load_plugins()["allocation"]["owl"].value
    context = Context(reference_tokens("calib")[:8], 0, list(range(len(anatomy(model).layers))))
    with torch.no_grad():
        shares = kind(kind.Options(mode="reference")).shares(model, 0.7, context)
    for what, ours, expected in (
        ("outliers in percent", context.notes["outliers"], official["outlier_ratio_percent"]),
        ("shares", shares, official["sparsity"]),
    ):
        compare(
            f"owl: {len(ours)} {what}, mean",
            f"{np.mean(ours):.6f}",
            f"{np.mean(expected):.6f}",
            differs=float(np.abs(np.array(ours) - np.array(expected)).max()),
            allowed=1e-3,
        )
