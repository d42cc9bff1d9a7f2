"""HyWIA beside LLM-Pruner, and the importance of FLAP and Minitron in decoder passes.

CPU time of one thread, in rounds that alternate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import pytest
import torch

from cpu_time import cpu_timed
from decoder_passes import decoder_pass
from prunebench import Context, anatomy
from prunebench.plugin.host import load_plugins
from smollm2 import reference_tokens, smollm2

pytestmark = [pytest.mark.bench, pytest.mark.usefixtures("one_thread")]

ROUNDS = 5


class Whole(Context):
    """Leaves the model as it is, so that all rounds prune the same one."""

    def keep_groups(self, model, kept) -> None:
        del model, kept

    def keep_hidden(self, model, kept) -> None:
        del model, kept

    def add_biases(self, model, biases) -> None:
        del model, biases


def pruning(
    model: Any, name: str, options: Mapping[str, object], tokens: torch.Tensor
) -> Callable[[], None]:
    cls = load_plugins()["method"][name].value
    method = cls(cls.Options.model_validate(options))

    def prune() -> None:
        with torch.no_grad():
            method.prune(model, Whole(tokens, 0, list(range(len(anatomy(model).layers)))))

    return prune


def compared(
    what: str,
    yardstick: Callable[[], None],
    ours: Callable[[], None],
    most: float,
    figure: Any,
) -> float:
    """Our seconds over the yardstick's: the median of pairs, or the best of each if that is less.

    What else the machine does only ever adds time, so the best of each is compared too.
    """
    pairs = [(cpu_timed(yardstick)[1], cpu_timed(ours)[1]) for _ in range(ROUNDS)]
    ratios = [mine / theirs for theirs, mine in pairs]
    best = min(mine for _, mine in pairs) / min(theirs for theirs, _ in pairs)
    found = min(median(ratios), best)
    figure(
        what, f"{found:.3f} ({', '.join(f'{ratio:.3f}' for ratio in ratios)})", f"at most {most}"
    )
    return found


@pytest.mark.parametrize("fusion", ["mean", "random-gate", "attention"])
def test_hywia_costs_at_most_llm_pruner_and_a_twentieth(fusion: str, figure: Any) -> None:
    """10 windows of 64 tokens, as published; by the median of pairs, or the best of each."""
    tokens = reference_tokens("calib")[:10, :64]
    model = smollm2().model
    plain = pruning(model, "llm-pruner", {"ratio": 0.5}, tokens)
    ours = pruning(model, "hywia", {"ratio": 0.5, "fusion": fusion}, tokens)
    plain()
    assert compared(f"HyWIA, {fusion} / LLM-Pruner", plain, ours, 1.05, figure) <= 1.05


@pytest.mark.parametrize("name", ["flap", "minitron"])
def test_importance_costs_at_most_a_decoder_pass_and_a_tenth(name: str, figure: Any) -> None:
    tokens = reference_tokens("calib")[:4]
    model = smollm2().model

    def dense() -> None:
        decoder_pass(model, tokens)

    ours = pruning(model, name, {"ratio": 0.2}, tokens)
    dense()
    assert compared(f"{name}, 4 x 512 tokens / decoder pass", dense, ours, 1.1, figure) <= 1.1
