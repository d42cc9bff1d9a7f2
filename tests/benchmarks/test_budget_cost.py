"""Budgeted search: what timing its blocks costs beside measuring their quality.

CPU time of all threads: timed rounds that something else disturbed are repeated, and count.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cpu_time import cpu_timed
from prunebench import Context
from prunebench.plugin.host import load_plugins
from prunebench_plugins import budget_search
from prunebench_plugins.budget_quality import Trials
from smollm2 import reference_tokens, smollm2

pytestmark = pytest.mark.bench

KIND = load_plugins()["method"]["budget-search"].value


def test_timing_blocks_takes_at_most_a_tenth_of_measuring_quality(
    monkeypatch: pytest.MonkeyPatch, cost: Any
) -> None:
    """On 384 tokens, a quarter of what the suite `seeds` calibrates most methods on.

    One round of three is run; the others measure as many variants.
    """
    tokens = reference_tokens("calib")[:1, :384]
    seconds = dict.fromkeys(("timing", "quality"), 0.0)

    def timed(what: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            found, took = cpu_timed(lambda: function(*args, **kwargs))
            seconds[what] += took
            return found

        return call

    monkeypatch.setattr(budget_search, "latency_of", timed("timing", budget_search.latency_of))
    monkeypatch.setattr(Trials, "costs", timed("quality", Trials.costs))
    model = smollm2().model
    context = Context(tokens, 0, list(range(30)))
    with torch.no_grad():
        KIND(KIND.Options(target_latency=0.2, rounds=1)).prune(model, context)
    rounds = KIND.Options().rounds
    share = seconds["timing"] / (rounds * seconds["quality"])
    notes = context.notes
    cost(
        method="budget-search, block timings",
        dtype="float32",
        seconds=f"{seconds['timing']:.1f}",
        yardstick=f"{rounds} x {seconds['quality']:.1f} s of quality",
        ratio=f"{share:.3f}",
        limit="0.1",
    )
    print(
        f"\nstep: {notes['dense_size'] / 1e6:.2f} ms dense, {notes['limit'] / 1e6:.2f} allowed,"
        f" {notes['predicted_size'] / 1e6:.2f} predicted, {notes['measured_size'] / 1e6:.2f}"
        f" measured; cost {notes['predicted_cost']:.3f} predicted,"
        f" {notes['measured_cost']:.3f} measured"
    )
    assert share <= 0.1
