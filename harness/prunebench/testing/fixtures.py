"""The pytest plugin: fixtures for the tests of plugins. Nothing heavy is imported before one of them is used."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from prunebench.record.record import Record


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., Any]:
    """`tiny_model(family="llama", seed=0, **config)`: a causal LM below a million weights, always the same."""

    def made(family: str = "llama", seed: int = 0, **config_overrides: Any) -> Any:
        from prunebench.testing.models import tiny_model

        return tiny_model(family, seed, **config_overrides)

    return made


@pytest.fixture
def calibration() -> torch.Tensor:
    """Token ids that every tiny model knows, int64 [4, 24]."""
    from prunebench.testing.models import tiny_calibration

    return tiny_calibration()


@pytest.fixture
def run_cell(tmp_path: Path) -> Callable[..., Record]:
    """`run_cell("wanda", sparsity=0.5, recovery="lora", metrics=["mine"])`: one whole cell on a tiny Llama, in this process.

    Pruned, audited, measured in perplexity and time; gives its Record, whose `status` is 'ok' or whose `error` says why
    not. The method is one that `prunebench plugins` lists.
    """

    def run(
        method: str,
        family: str = "llama",
        seed: int = 0,
        metrics: Sequence[Any] = (),
        **options: Any,
    ) -> Record:
        return _run(tmp_path, method, family, seed, metrics, options)

    return run


def _run(
    folder: Path,
    method: str,
    family: str,
    seed: int,
    metrics: Sequence[Any],
    options: dict[str, Any],
) -> Record:
    import torch

    from prunebench.cell.events import EventWriter
    from prunebench.cell.run import run_cell
    from prunebench.plugin.host import load_plugins
    from prunebench.suite.load import check_suite
    from prunebench.suite.plan import plan
    from prunebench.suite.source import source_of
    from prunebench.testing.models import tiny_checkpoint

    model = folder / f"tiny-{family}"
    if not model.exists():
        tiny_checkpoint(model, family)
    text = {"corpus": "tiny-text", "windows": 2, "length": 24}
    data = {
        "name": "contract",
        "models": str(model),
        "methods": [{method: options}],
        "calibration": text,
        "quality": {"perplexity": dict(text), "metrics": list(metrics)},
        "profile": {"latency": {"prompt": 8, "new_tokens": 2, "min_rounds": 1, "min_time_s": 0.0}},
        "seeds": [seed],
        "device": "cpu",
    }
    registry = load_plugins()
    suite = check_suite(source_of(data, "run_cell"), registry)
    [cell] = [cell for cell in plan(suite, registry).cells if cell.method.name == method]
    threads, random_state = torch.get_num_threads(), torch.random.get_rng_state()
    try:
        with mock.patch.dict(os.environ):
            return run_cell(cell, events=EventWriter(io.StringIO()), command="run_cell")
    finally:
        torch.set_num_threads(threads)
        torch.random.set_rng_state(random_state)
