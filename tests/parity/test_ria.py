"""RIA's masks against those of its released code, on fixed tokens."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from prunebench import Context, anatomy
from prunebench.plugin.host import load_plugins
from smollm2 import reference_file, reference_tokens, smollm2

pytestmark = pytest.mark.parity

# Differing bits allowed, as for Wanda at 50 %.
ALLOWED = {0: 1e-5, 14: 2 * 0.0015, 29: 2 * 0.0015}


def test_masks_agree_with_the_released_code() -> None:
    official = np.load(reference_file("related/ria.npz"))
    expected = json.loads(reference_file("related/ria.json").read_text())["runs"]["50"]
    model = smollm2().model
    parts = anatomy(model)
    cls = load_plugins()["method"]["ria"].value
    options = cls.Options(sparsity=0.5, mode="reference")
    with torch.no_grad():
        cls(options).prune(model, Context(reference_tokens("calib")[:4], 0, list(range(30))))

    zeros = 0
    wrong, size = dict.fromkeys(ALLOWED, 0), dict.fromkeys(ALLOWED, 0)
    for index, layer in enumerate(parts.layers):
        for name, linear in parts.linears(layer).items():
            mine = (linear.weight == 0).numpy().reshape(-1)
            zeros += int(mine.sum())
            if index in ALLOWED:
                theirs = np.unpackbits(official[f"50.{index}.{name}"])[: mine.size].astype(bool)
                wrong[index] += int((mine != theirs).sum())
                size[index] += mine.size
    differing = {index: wrong[index] / size[index] for index in ALLOWED}
    said = ", ".join(f"layer {index} {share:.2e}" for index, share in differing.items())
    print(f"\nria 50 %: share of mask bits that differ: {said}")
    print(f"ria 50 %: zeros {zeros:,}, official {expected['zeros']:,}")
    assert all(differing[index] <= allowed for index, allowed in ALLOWED.items())
    assert abs(zeros - expected["zeros"]) <= 30
