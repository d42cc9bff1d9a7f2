"""ECoFLaP agrees with its released code on SmolLM2: scores with the same noise, allocations."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from prunebench import Context, anatomy
from prunebench_plugins.ecoflap_budget import distribute, distribute_as_released
from prunebench_plugins.ecoflap_scores import Noise, first_order, noise_seeds, zeroth_order
from smollm2 import reference_file, reference_tokens, smollm2

pytestmark = pytest.mark.parity
BLOCKS = range(25, 30)
ROUNDING = 4 * 2.0**-21 / 2e-3
"""What rounding alone can change of a score: losses of 5 in float32, two for each of two windows."""


@pytest.fixture(scope="module")
def model() -> Any:
    return smollm2().model


@pytest.fixture(scope="module")
def official() -> Any:
    return np.load(reference_file("related/ecoflap.npz"))


@pytest.fixture(scope="module")
def results() -> Any:
    return json.loads(reference_file("related/ecoflap.json").read_text())


def context_of(model) -> Context:
    return Context(reference_tokens("calib")[:2], 0, list(range(len(anatomy(model).layers))))


def linears_of(model, blocks=BLOCKS) -> dict[int, dict[str, torch.nn.Linear]]:
    parts = anatomy(model)
    return {
        index: {
            f"{parts.layers_path}.{index}.{name}": linear
            for name, linear in parts.linears(parts.layers[index]).items()
        }
        for index in blocks
    }


@pytest.mark.parametrize("mode", ["reference", "clean"])
def test_zeroth_order_scores_with_the_same_noise_agree(
    model, official, results, compare, mode: str
) -> None:
    windows = reference_tokens("calib")[:2, :32]
    linears = linears_of(model)
    paths = [path for some in linears.values() for path in some]
    assert [f"{path}.weight" for path in paths] == results["zeroth_matrix_order"]
    seeds = noise_seeds(0, len(paths), 2)
    assert seeds == official["zeroth.seed"].tolist()
    noise = Noise(1e-3, 1, mode == "reference")
    before = [linear.weight.clone() for some in linears.values() for linear in some.values()]
    with torch.no_grad():
        found = zeroth_order(
            model,
            context_of(model),
            linears,
            windows,
            dict(zip(paths, seeds, strict=True)),
            noise,
        )
    after = [linear.weight for some in linears.values() for linear in some.values()]
    assert all(map(torch.equal, before, after))
    ours, expected = np.array([found[path] for path in paths]), official["zeroth.score"]
    compare(
        f"ecoflap zeroth order, {mode}: {len(paths)} scores, sum",
        f"{ours.sum():.5f}",
        f"{expected.sum():.5f}",
        differs=float(((np.abs(ours - expected) - ROUNDING) / expected).max()),
        allowed=1e-2,
    )
    blocks, sums = ours.reshape(5, -1).sum(1), expected.reshape(5, -1).sum(1)
    compare(
        f"ecoflap zeroth order, {mode}: 5 blocks, largest",
        f"{blocks.max():.5f}",
        f"{sums.max():.5f}",
        differs=float(np.abs(blocks / sums - 1).max()),
        allowed=1e-2,
    )


@pytest.mark.parametrize("score", ["GradOnly", "GradMagSquare"])
def test_first_order_scores_agree(model, official, compare, score) -> None:
    windows = reference_tokens("calib")[:2, :64]
    linears = {
        path: one for some in linears_of(model, range(30)).values() for path, one in some.items()
    }
    found = first_order(model, linears, windows, score, lambda *_: None)
    ours, expected = np.array(list(found.values())), official[f"first.{score}.sum_per_matrix"]
    compare(
        f"ecoflap first order, {score}: {len(ours)} scores, sum",
        f"{ours.sum():.6g}",
        f"{expected.sum():.6g}",
        differs=float(np.abs(ours / expected - 1).max()),
        allowed=1e-2,
    )
    assert not any(
        one.weight.requires_grad or one.weight.grad is not None for one in linears.values()
    )


@pytest.mark.parametrize(
    "name", ["first_order_GradOnly", "first_order_GradMagSquare", "zeroth_MEZO-GradOnly"]
)
@pytest.mark.parametrize("aggregate", ["sum", "avg"])
def test_the_allocation_is_exactly_the_released_one(
    model, official, results, compare, name: str, aggregate: str
) -> None:
    blocks = BLOCKS if name.startswith("zeroth") else range(30)
    sizes = [
        sum(one.weight.numel() for one in some.values())
        for some in linears_of(model, blocks).values()
    ]
    key = {"first_order_GradOnly": "first.GradOnly.sum_per_matrix",
           "first_order_GradMagSquare": "first.GradMagSquare.sum_per_matrix"}.get(name, "zeroth.score")  # fmt: skip
    scores = torch.from_numpy(official[key]).float().reshape(len(sizes), -1)
    total = torch.zeros(len(sizes))
    for column in scores.T:
        total += column
    if aggregate == "avg":
        total = total / torch.tensor(sizes)
    expected = results[name][aggregate]["group_sparsity"]
    ours = distribute_as_released(total.tolist(), sizes, 0.6, 0.7)
    compare(
        f"ecoflap {name} {aggregate}: {len(sizes)} shares, mean",
        f"{np.mean(ours):.7f}",
        f"{np.mean(expected):.7f}",
        differs=float(np.abs(np.array(ours) - np.array(expected)).max()),
        # The sums of the scores are stored, not the scores: theirs were added up in float32.
        allowed=3e-7,
    )
    clean = distribute(total.tolist(), sizes, 0.6, 0.7)
    kept = sum(round(size * (1 - share)) for size, share in zip(sizes, clean, strict=True))
    assert kept == int(sum(sizes) * (1 - 0.6))
    assert clean == pytest.approx(expected, abs=1e-5)
