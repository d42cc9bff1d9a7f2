"""HyWIA beside LLM-Pruner, DSnoT beside Wanda, FLAP and Minitron in decoder passes, each in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import pytest
import torch

from prunebench import Context, anatomy
from prunebench.plugin.host import load_plugins
from prunebench_plugins.minitron_importance import BATCH_TOKENS, observe
from smollm2 import reference_tokens, smollm2

pytestmark = pytest.mark.bench

ROUNDS = 5


class Whole(Context):
    """Leaves the model as it is, so that all rounds prune the same one."""

    def keep_groups(self, model, kept) -> None:
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


def seconds(step: Callable[[], None]) -> float:
    begun = time.perf_counter()
    step()
    return time.perf_counter() - begun


def cost(what: str, yardstick: Callable[[], None], ours: Callable[[], None], most: float) -> float:
    """Our seconds over the yardstick's: the median of pairs, or the best of each if that is less.

    What else the machine does only ever adds time, so the best of each is compared too.
    """
    pairs = [(seconds(yardstick), seconds(ours)) for _ in range(ROUNDS)]
    ratios = [mine / theirs for theirs, mine in pairs]
    best = min(mine for _, mine in pairs) / min(theirs for theirs, _ in pairs)
    print(
        f"\n{what}: median {median(ratios):.3f}, best over best {best:.3f},"
        f" rounds {', '.join(f'{ratio:.3f}' for ratio in ratios)} (at most {most})"
    )
    return min(median(ratios), best)


@pytest.mark.parametrize("fusion", ["mean", "random-gate", "attention"])
def test_hywia_costs_at_most_llm_pruner_and_a_twentieth(fusion: str) -> None:
    """10 windows of 64 tokens, as published; by the median of pairs, or the best of each."""
    tokens = reference_tokens("calib")[:10, :64]
    model = smollm2().model
    plain = pruning(model, "llm-pruner", {"ratio": 0.5}, tokens)
    ours = pruning(model, "hywia", {"ratio": 0.5, "fusion": fusion}, tokens)
    plain()
    assert cost(f"hywia {fusion} / llm-pruner", plain, ours, most=1.05) <= 1.05


def passes(model: Any, tokens: torch.Tensor) -> Callable[[], None]:
    """One decoder pass over the windows, as many at once as Minitron takes."""
    decoder = anatomy(model).decoder

    def dense() -> None:
        with torch.no_grad():
            for windows in tokens.split(max(1, BATCH_TOKENS // tokens.shape[1])):
                decoder(windows, use_cache=False)

    return dense


def test_flap_s_importance_costs_at_most_a_decoder_pass_and_a_tenth() -> None:
    tokens = reference_tokens("calib")[:8]
    model = smollm2().model
    dense = passes(model, tokens)
    ours = pruning(model, "flap", {"ratio": 0.2}, tokens)
    dense()
    assert cost("flap / decoder pass", dense, ours, most=1.1) <= 1.1


def test_minitron_s_importance_costs_at_most_a_decoder_pass_and_a_tenth() -> None:
    tokens = reference_tokens("calib")[:8]
    model = smollm2().model
    dense = passes(model, tokens)

    def ours() -> None:
        with torch.no_grad():
            observe(anatomy(model), Context(tokens, 0, list(range(30))))

    dense()
    assert cost("minitron / decoder pass", dense, ours, most=1.1) <= 1.1


def test_dsnot_costs_at_most_twice_what_its_mask_costs() -> None:
    """The statistics are those of Wanda and two more; the exchanges come on top."""
    tokens = reference_tokens("calib")[:4]
    models = [smollm2().model for _ in range(2)]

    def prune(model: Any, name: str, **options: object) -> Callable[[], None]:
        whole = {name: each.clone() for name, each in model.state_dict().items()}
        step = pruning(model, name, {"sparsity": 0.6, **options}, tokens)

        def run() -> None:
            model.load_state_dict(whole)
            step()

        return run

    plain = prune(models[0], "wanda")
    ours = prune(models[1], "dsnot", initial_method="wanda")
    plain()
    assert cost("dsnot on wanda / wanda", plain, ours, most=2.0) <= 2.0
