"""Depth methods against the plain way of doing the same: their choices and their seconds.

Plain is what the papers' programs do: every candidate runs in full, window by window, and LaCo runs
the dense and the merged model for each trial. CPU time counts, because other processes disturb it
less than the time on the clock.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch

from cpu_time import cpu_timed
from prunebench import Context, anatomy
from prunebench.model.surgery import without
from prunebench.plugin.host import load_plugins
from prunebench_plugins.laco_merges import Merger, Space
from smollm2 import reference_tokens, smollm2

pytestmark = pytest.mark.bench


@pytest.fixture(scope="module")
def model() -> Any:
    return smollm2().model


@torch.no_grad()
def ours(model, tokens: torch.Tensor, name: str, **options: Any) -> dict[str, Any]:
    """What the method notes; the model stays as it is."""
    context = Context(tokens, 0, list(range(30)))
    context.remove_layers = lambda *_: None
    kind = load_plugins()["method"][name].value
    kind(kind.Options.model_validate(options)).prune(model, context)
    return context.notes


@torch.no_grad()
def loss_without(model, tokens: torch.Tensor, gone: list[int]) -> float:
    parts = anatomy(model)
    with ExitStack() as removed:
        for layer in gone:
            removed.enter_context(without(parts, layer, ["attention", "mlp"]))
        return sum(model(w[None], labels=w[None], use_cache=False).loss.item() for w in tokens)


def ranking(model, tokens: torch.Tensor) -> list[int]:
    losses = [loss_without(model, tokens, [layer]) for layer in range(30)]
    # The layers that "+" protects are ranked too, and stay.
    order = sorted(range(30), key=losses.__getitem__)
    return [layer for layer in order if 4 <= layer < 28][:6]


def greedy(model, tokens: torch.Tensor, steps: int) -> list[int]:
    gone: list[int] = []
    for _ in range(steps):
        left = [layer for layer in range(1, 29) if layer not in gone]
        gone.append(min(left, key=lambda layer: loss_without(model, tokens, [*gone, layer])))
    return gone


def compared(
    plain: Callable[[], Any], method: Callable[[], dict[str, Any]], key: str
) -> tuple[float, float, float]:
    """The method's part of the plain way's CPU time, and the seconds of both; same choices.

    The machine drifts, so the method runs before the plain way and behind it.
    """
    found, before = cpu_timed(method)
    expected, plainly = cpu_timed(plain)
    again, behind = cpu_timed(method)
    for one in (found, again):
        assert one[key] == pytest.approx(expected, abs=1e-4)
    mine = (before + behind) / 2
    return mine / plainly, mine, plainly


def report(cost: Any, name: str, measured: tuple[float, float, float], limit: float) -> None:
    ratio, mine, plain = measured
    cost(
        method=name,
        dtype="float32",
        seconds=f"{mine:.1f}",
        yardstick=f"{plain:.1f} s in full",
        ratio=f"{ratio:.3f}",
        limit=f"{limit}",
    )
    assert ratio <= limit


def test_shortened_llama_takes_at_most_half_of_evaluating_every_layer_in_full(model, cost) -> None:
    tokens = reference_tokens("calib")[:1, :128]
    measured = compared(
        lambda: ranking(model, tokens),
        lambda: ours(model, tokens, "shortened-llama", count=6),
        "removed_in_order",
    )
    report(cost, "shortened-llama, ppl, 128 tokens", measured, 0.5)


def test_sleb_takes_at_most_half_of_evaluating_every_layer_in_full(model, cost) -> None:
    tokens = reference_tokens("calib")[:1, :128]
    measured = compared(
        lambda: greedy(model, tokens, 2),
        lambda: ours(model, tokens, "sleb", count=2),
        "removed_in_order",
    )
    report(cost, "sleb, 2 layers, 128 tokens", measured, 0.5)


@torch.no_grad()
def notebook(model, tokens: torch.Tensor) -> list[float]:
    """The cosine of every merge of three layers of the dense model, without copies of it."""
    parts, found = anatomy(model), []
    dense_layers = parts.layers
    for lay in range(26, -1, -1):
        base, last = dense_layers[lay], dense_layers[lay + 2]
        own = {name: linear.weight.data for name, linear in parts.linears(base).items()}
        merged = torch.nn.ModuleList([*dense_layers[: lay + 1], *dense_layers[lay + 3 :]])
        cosines = []
        for window in tokens:
            dense = model.model(window[None], use_cache=False).last_hidden_state.flatten()
            model.model.layers, model.config.num_hidden_layers = merged, 28
            for name in own:
                base.get_submodule(name).weight.data = last.get_submodule(name).weight.data
            try:
                trial = model.model(window[None], use_cache=False).last_hidden_state.flatten()
            finally:
                model.model.layers, model.config.num_hidden_layers = dense_layers, 30
                for name, weight in own.items():
                    base.get_submodule(name).weight.data = weight
            cosines.append(float(torch.cosine_similarity(dense, trial, 0)))
        found.append(sum(cosines) / len(cosines))
    return found


@torch.no_grad()
def walked(model, tokens: torch.Tensor) -> dict[str, Any]:
    merger = Merger(model, Context(tokens, 0, list(range(30))), "code", lambda _: None)
    walk = merger.walk(1.0, Space(3, 1, 0, 29))
    return {"cosines": [trial.cosine for trial in walk.trials]}


def test_laco_takes_at_most_half_of_running_both_models_for_each_trial(model, cost) -> None:
    tokens = reference_tokens("calib")[:2, :64]
    measured = compared(lambda: notebook(model, tokens), lambda: walked(model, tokens), "cosines")
    report(cost, "laco, 27 merges of 3 layers, 2 x 64 tokens", measured, 0.5)
