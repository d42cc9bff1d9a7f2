"""SparseGPT's kernel for GPUs, compiled for the CPU here: the masks of the plain loop.

The CPU itself runs the plain loop, because compiling takes longer than that saves on small models.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import pytest
import torch

from cpu_time import cpu_timed
from prunebench_plugins.sparsegpt import Rows, inverse_factor, sweep
from prunebench_plugins.sparsegpt_kernel import Kernel

pytestmark = [
    pytest.mark.bench,
    # The compiler's own imports use what Python will remove.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

FEATURES = 576
SEVERAL = (960, 1536, 3072)
"""Rows that read the same input in SmolLM2: of queries, keys and values; of gate and up."""


@pytest.mark.parametrize("sparsity", [0.5, "2:4"])
def test_the_compiled_kernel_gives_the_masks_of_the_plain_loop(
    sparsity: float | str, figure: Any
) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(FEATURES, 4096, generator=generator)
    mixed = torch.randn(FEATURES, FEATURES, generator=generator) @ inputs
    factor = inverse_factor(mixed @ mixed.t(), 0.01)
    assert factor is not None
    kernel = Kernel()
    seconds: dict[str, float] = {}
    with torch.no_grad():
        for rows in SEVERAL:
            columns = torch.randn(FEATURES, rows, generator=generator)
            plain, ours, again = columns.clone(), columns.clone(), columns.clone()
            linears = [Rows(rows, sparsity)]
            begun = time.perf_counter()
            sweep(ours, factor, linears, kernel=kernel)
            seconds[f"{rows} rows, the first time"] = time.perf_counter() - begun
            _, loop = cpu_timed(partial(sweep, plain, factor, linears))
            _, compiled = cpu_timed(partial(sweep, again, factor, linears, kernel=kernel))
            assert kernel.refused is None
            assert torch.equal(ours == 0, plain == 0)
            assert torch.equal(again, ours)
            torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
    print({name: f"{spent:.1f} s" for name, spent in seconds.items()})
    figure(
        f"SparseGPT {sparsity}: compiled kernel / plain loop, CPU time, {SEVERAL[-1]} rows",
        f"{compiled / loop:.2f} ({compiled:.3f} s)",
    )
