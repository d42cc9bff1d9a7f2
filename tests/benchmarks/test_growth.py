"""How run time grows with the model, the text, the cells and the layers: exponents of four points.

Time = constant + factor * size ^ exponent. Nothing here is more than linear, so each doubling must
not cost more than twice what the doubling before did.
"""

from __future__ import annotations

import io
import itertools
import math
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from statistics import median
from typing import Any

import pytest
import torch
from numpy.polynomial import Polynomial

from cpu_time import cpu_seconds_of_children
from evaluation import SPEC, windows_of
from prunebench import Context, anatomy
from prunebench.measure.quality.perplexity import perplexity
from prunebench.plugin.host import load_plugins
from rig import Rig
from tiny import VOCABULARY, tiny_model

pytestmark = pytest.mark.bench

ROUNDS = 3
LENGTH = 128
LIMIT = 1.15
"""Largest exponent of what is linear; the rest is noise of a few seconds of work."""


def exponent(
    sizes: Sequence[float], seconds: Sequence[float], weights: Sequence[float] | None = None
) -> float:
    """The slope of log seconds over log size, by least squares."""
    x, y = ([math.log(each) for each in values] for values in (sizes, seconds))
    line: Any = Polynomial.fit(x, y, 1, w=weights).convert()
    return float(line.coef[1])


def model_of(layers: int = 4, intermediate: int = 512) -> Any:
    return tiny_model(
        "llama",
        hidden_size=256,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
    )


def cell(model: Any, windows: int) -> float:
    """CPU seconds of Wanda and of perplexity, each on ``windows`` windows."""
    tokens = torch.randint(2, VOCABULARY, (windows, LENGTH))
    kind = load_plugins()["method"]["wanda"].value
    begun = time.process_time()
    with torch.no_grad():
        context = Context(tokens, 0, list(range(len(anatomy(model).layers))))
        kind(kind.Options(sparsity=0.5)).prune(model, context)
        perplexity(model, windows_of(tokens), SPEC)
    return time.process_time() - begun


def parameters(model: Any) -> int:
    return sum(each.numel() for each in model.parameters())


GROWS: dict[str, tuple[Sequence[int], Callable[[int], tuple[float, Callable[[], float]]]]] = {
    "parameters": (
        (512, 1536, 3584, 7680),
        lambda size: (
            parameters(model := model_of(intermediate=size)),
            lambda: cell(model, 8),
        ),
    ),
    "windows": ((8, 16, 32, 64), lambda size: (size, lambda: cell(model_of(), size))),
    "layers": ((4, 8, 16, 32), lambda size: (size, lambda: cell(model_of(size), 8))),
}


@pytest.mark.parametrize("what", GROWS)
def test_a_cell_grows_linearly(what, figure) -> None:
    points, make = GROWS[what]
    cell(model_of(), 2)
    sizes, works = zip(*map(make, points), strict=True)
    rounds = [[work() for work in works] for _ in range(ROUNDS)]
    seconds = [median(each) for each in zip(*rounds, strict=True)]
    found = exponent(sizes, seconds)
    shown = ", ".join(f"{spent:.2f}" for spent in seconds)
    figure(f"Wanda and perplexity, exponent of {what}", f"{found:.2f} ({shown} s)", "at most 1")
    assert found <= LIMIT


def run_of(rig: Rig, count: int, folder: str) -> float:
    """CPU seconds of all processes of a run with ``count`` cells."""
    shares = ", ".join(f"{(number + 1) / 128:.6f}" for number in range(count - 1))
    rig.suite(f"magnitude: {{sparsity: [{shares}]}}")
    begun = cpu_seconds_of_children()
    with redirect_stdout(io.StringIO()):
        done = rig.prunebench("run", "tiny.yaml", "--out", folder)
    assert done.returncode == 0, done.stderr
    return cpu_seconds_of_children() - begun


def test_a_run_grows_linearly_with_its_cells(tmp_path, figure) -> None:
    """A run has a start of its own, so growth is that of what further cells cost."""
    rig = Rig(tmp_path)
    counts = (8, 16, 32, 64)
    # The smallest runs twice: noise counts most in what is between it and the next one.
    seconds = [run_of(rig, count, f"run-{count}") for count in counts]
    seconds[0] = min(seconds[0], run_of(rig, counts[0], "again"))
    more = [after - before for before, after in itertools.pairwise(seconds)]
    # A run is off by the same seconds whatever its length, so their logarithm is off by less the
    # more cells are between two runs.
    found = exponent(counts[:-1], more, weights=more)
    shown = ", ".join(f"{spent:.1f}" for spent in seconds)
    figure("a run, exponent of cells", f"{found:.2f} ({shown} s)", "at most 1")
    assert found <= LIMIT + 0.1
