"""AlphaPruning agrees with its released code on SmolLM2: exponents, distances, shares."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prunebench import Context, anatomy
from prunebench.model import tensor_folder
from prunebench.plugin.host import load_plugins
from prunebench_plugins.alphapruning_fit import Fit, eigenvalues, power_law
from smollm2 import reference_file, smollm2

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The model, with a cache of its own: the first test decomposes, the others find it there."""
    folder: Path = tmp_path_factory.mktemp("cache")
    loaded = smollm2().model
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tensor_folder, "cache_dir", lambda: folder)
        yield loaded


@pytest.fixture(scope="module")
def official() -> Any:
    return np.load(reference_file("related/alphapruning.npz"))


def allocated(model, sparsity: float = 0.7, **options) -> tuple[Any, Context]:
    kind = load_plugins()["allocation"]["alphapruning"].value
    context = Context(None, 0, list(range(len(anatomy(model).layers))))
    options = kind.Options.model_validate({"mode": "reference", **options})
    with torch.no_grad():
        return kind(options).shares(model, sparsity, context), context


@pytest.mark.parametrize("metric", ["alpha_peak", "alpha_mid"])
def test_the_exponent_of_every_linear_agrees(model, official, compare, metric: str) -> None:
    _, context = allocated(model, metric=metric)
    ours = np.array(list(context.notes["alphas"].values()))
    assert [path.removeprefix("model.layers.") for path in context.notes["alphas"]] == list(
        official["linear_names"]
    )
    compare(
        f"alphapruning {metric}: {len(ours)} exponents, mean",
        f"{ours.mean():.6f}",
        f"{official[metric].mean():.6f}",
        # Exponents of 18 exist: rounding in the decomposition shows more in them.
        differs=float((np.abs(ours - official[metric]) / np.maximum(1, official[metric])).max()),
        allowed=1e-4,
    )


@pytest.mark.parametrize("metric", ["alpha_peak", "alpha_mid"])
def test_the_share_of_every_block_and_linear_agrees(model, official, compare, metric: str) -> None:
    results = json.loads(reference_file("related/alphapruning.json").read_text())["results"]
    for mapping, expected in (
        ("block_wise", results[metric]["ratios_S0.7_eps0.3"]),
        ("layer_wise", official[f"{metric}.per_linear_ratios_S0.7_eps0.3"]),
    ):
        found, context = allocated(model, metric=metric, mapping_type=mapping)
        # The released shares may exceed 1, and a sparsity may not.
        found = context.notes.get("uncapped_shares", found)
        ours = np.array(list(found.values()) if isinstance(found, dict) else found)
        compare(
            f"alphapruning {metric} {mapping}: {len(ours)} shares, largest",
            f"{ours.max():.6f}",
            f"{np.max(expected):.6f}",
            differs=float(np.abs(ours - np.array(expected)).max()),
            allowed=1e-3,
        )


def test_eigenvalues_and_distances_agree(model, official, compare) -> None:
    for name in official.files:
        if name.startswith("eigs."):
            linear = model.get_submodule(f"model.layers.{name.removeprefix('eigs.')}")
            ours = eigenvalues(linear.weight.detach()).numpy()
            compare(
                f"alphapruning {name}: largest eigenvalue",
                f"{ours[-1]:.5f}",
                f"{official[name][-1]:.5f}",
                differs=float(np.abs(ours / official[name] - 1).max()),
                allowed=1e-4,
            )
            where = list(official["linear_names"]).index(name.removeprefix("eigs."))
            law = power_law(torch.from_numpy(official[name]), Fit("alpha_peak", 100, 2.0, True))
            theirs = float(official["alpha_peak"][where])
            compare(
                f"alphapruning {name}: exponent of the official eigenvalues",
                f"{law.alpha:.6f}",
                f"{theirs:.6f}",
                differs=abs(law.alpha - theirs),
                allowed=0,
            )
            compare(
                f"alphapruning {name}: distance of the fit",
                f"{law.distance:.6f}",
                f"{official['alpha_peak.D'][where]:.6f}",
                differs=abs(law.distance - float(official["alpha_peak.D"][where])),
                allowed=1e-5,
            )
