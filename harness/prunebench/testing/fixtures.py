"""The pytest plugin: fixtures for the tests of plugins.

pytest loads this module in every test run of an environment that has prunebench, so nothing heavy
is imported before a fixture is used.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from prunebench.record.record import Record


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., Any]:
    """`tiny_model(family="llama", seed=0, **config)`: a causal LM of less than a million weights.

    The same arguments give the same weights.
    """

    def made(family: str = "llama", seed: int = 0, **config_overrides: Any) -> Any:
        from prunebench.testing.models import tiny_model

        return tiny_model(family, seed, **config_overrides)

    return made


@pytest.fixture
def calibration() -> torch.Tensor:
    """Token ids in the vocabulary of every tiny model, int64 [windows, length] = [4, 24]."""
    from prunebench.testing.models import tiny_calibration

    return tiny_calibration()


@pytest.fixture
def run_cell(tmp_path: Path) -> Callable[..., Record]:
    """`run_cell("wanda", {"sparsity": 0.5}, metrics=["mine"])`: run a whole cell.

    It prunes a tiny Llama in this process, audits it, measures perplexity and latency, and returns
    the Record: `status` is 'ok', or `error` says why not. The method is one that `prunebench
    plugins` lists; its options are those of a suite, `allocation` and `recovery` too.
    """

    def run(
        method: str,
        options: Mapping[str, Any] | None = None,
        *,
        family: str = "llama",
        seed: int = 0,
        metrics: Sequence[Any] = (),
    ) -> Record:
        model = tmp_path / f"tiny-{family}"
        return _run(model, family, _suite(model, method, options or {}, seed, metrics))

    return run


def _suite(
    model: Path, method: str, options: Mapping[str, Any], seed: int, metrics: Sequence[Any]
) -> dict[str, Any]:
    text = {"corpus": "tiny-text", "windows": 2, "length": 24}
    return {
        "name": "contract",
        "models": str(model),
        "methods": [{method: dict(options)}],
        "calibration": text,
        "quality": {"perplexity": dict(text), "metrics": list(metrics)},
        "profile": {"latency": {"prompt": 8, "new_tokens": 2, "min_rounds": 1, "min_time_s": 0.0}},
        "seeds": [seed],
        "device": "cpu",
    }


def _run(model: Path, family: str, suite: dict[str, Any]) -> Record:
    """Run the last cell of ``suite``: a plan puts the dense model first."""
    import torch

    from prunebench.cell.events import EventWriter
    from prunebench.cell.run import run_cell
    from prunebench.plugin.host import load_plugins
    from prunebench.suite.load import check_suite
    from prunebench.suite.plan import plan
    from prunebench.suite.source import source_of
    from prunebench.testing.models import tiny_checkpoint

    if not model.exists():
        tiny_checkpoint(model, family)
    registry = load_plugins()
    *_, cell = plan(check_suite(source_of(suite, "run_cell"), registry), registry).cells
    # A cell sets these for its own process; here that is the process of the tests.
    threads, random_state = torch.get_num_threads(), torch.random.get_rng_state()
    try:
        with mock.patch.dict(os.environ):  # lm-eval sets variables when it is imported
            return run_cell(cell, events=EventWriter(io.StringIO()), command="run_cell")
    finally:
        torch.set_num_threads(threads)
        torch.random.set_rng_state(random_state)
