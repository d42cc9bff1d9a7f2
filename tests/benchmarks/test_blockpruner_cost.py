"""BlockPruner against the plain greedy loop on the same windows: its choices and its seconds."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import pytest
import torch

from prunebench import Block, Context, anatomy
from prunebench.model.surgery import without
from prunebench.plugin.host import load_plugins
from smollm2 import reference_tokens, smollm2

pytestmark = pytest.mark.bench

STEPS = 2


@torch.no_grad()
def plain_loop(model, tokens: torch.Tensor, steps: int) -> list[str]:
    """Remove the unit whose removal gives the lowest loss of the model, evaluated in full."""
    parts = anatomy(model)
    left = sorted(parts.blocks, key=lambda block: (block.kind, block.layer))
    gone: list[Block] = []
    for _ in range(steps):
        losses = []
        for unit in left:
            with ExitStack() as removed:
                for layer, kind in [*gone, unit]:
                    removed.enter_context(without(parts, layer, [kind]))
                losses.append(
                    sum(model(w[None], labels=w[None], use_cache=False).loss.item() for w in tokens)
                )
        gone.append(left.pop(losses.index(min(losses))))
    return [str(unit) for unit in gone]


def test_blockpruner_takes_at_most_0_45_of_the_plain_loop_and_chooses_the_same(
    figure: Any,
) -> None:
    tokens = reference_tokens("calib")[:1, :256]
    cls = load_plugins()["method"]["blockpruner"].value
    model = smollm2().model
    model(tokens[:1])
    begun = time.perf_counter()
    expected = plain_loop(model, tokens, STEPS)
    plain = time.perf_counter() - begun
    context = Context(tokens, 0, list(range(30)))
    begun = time.perf_counter()
    with torch.no_grad():
        cls(cls.Options(count=STEPS)).prune(model, context)
    ours = time.perf_counter() - begun
    notes = context.notes
    print(
        f"of {notes['naive_evaluations']} evaluations {notes['decoder_evaluations']} decoder passes"
        f" and {notes['head_evaluations']} heads; removed {', '.join(notes['removed_in_order'])}"
    )
    figure(
        f"BlockPruner, {STEPS} of 60 units / the plain loop",
        f"{ours / plain:.3f} ({ours:.0f} s of {plain:.0f})",
        "at most 0.45",
    )
    assert notes["removed_in_order"] == expected
    assert ours <= 0.45 * plain
