"""What a step of distillation costs beside a plain training step and a forward of the dense model."""

from __future__ import annotations

from statistics import median
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cpu_time import cpu_timed
from prunebench.plugin.host import load_plugins
from prunebench.training.loop import train
from prunebench.training.objective import NextToken
from prunebench.training.optimiser import Trainable
from prunebench.training.watch import Watch
from prunebench.training.windows import TrainingWindows
from prunebench_plugins.distill_objective import Distillation

pytestmark = pytest.mark.bench

ROUNDS = 4
VOCABULARY = 16_384
MOST = 1.15


def small_model() -> Any:
    """Layers as wide as those of SmolLM2-135M, eight of them: a run takes seconds."""
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=VOCABULARY,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval().requires_grad_(requires_grad=False)


def test_distillation_costs_at_most_a_step_and_a_teacher_and_a_little(one_thread, cost) -> None:
    """In one run, interleaved: a plain step, a forward of the dense model, and distillation."""
    model, dense = small_model(), small_model()
    tokens = torch.randint(0, VOCABULARY, (1, 128), generator=torch.Generator().manual_seed(0))
    kind = load_plugins()["recovery"]["distill"].value
    options = kind.Options(max_steps=1, learning_rate=1e-7, min_learning_rate=1e-8)

    def trained(objective: Any) -> None:
        train(
            objective,
            Trainable(dict(model.named_parameters())),
            TrainingWindows(tokens),
            options,
            generator=torch.Generator().manual_seed(0),
            watch=Watch(),
        )

    @torch.no_grad()
    def forward() -> None:
        dense(input_ids=tokens[:, :-1], use_cache=False)

    trained(NextToken(model))  # warm up
    rounds = [
        (
            cpu_timed(lambda: trained(NextToken(model)))[1],
            cpu_timed(forward)[1],
            cpu_timed(lambda: trained(Distillation(model, dense, options)))[1],
        )
        for _ in range(ROUNDS)
    ]
    ratios = [ours / (plain + teacher) for plain, teacher, ours in rounds]
    plain, teacher, ours = (min(each) for each in zip(*rounds, strict=True))
    print(
        f"\ndistill: plain step {plain:.3f} s, teacher {teacher:.3f} s, distillation {ours:.3f} s;"
        f" median {median(ratios):.3f}, rounds {', '.join(f'{ratio:.3f}' for ratio in ratios)}"
        f" (at most {MOST})"
    )
    cost(
        method="distill, one window of 128 tokens",
        dtype="float32",
        seconds=f"{ours:.3f}",
        yardstick="plain step + teacher forward",
        ratio=f"{median(ratios):.2f}",
        limit=str(MOST),
    )
    assert median(ratios) <= MOST
