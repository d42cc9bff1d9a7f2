"""A training tells its loss, its speed and its memory, about once a second."""

from __future__ import annotations

import logging

import pytest
import torch

from prunebench.training import watch
from prunebench.training.watch import Watch


class Objective:
    device = torch.device("cpu")


class Budget(Objective):
    def says(self) -> str:
        return "half removed"


def test_words_are_said_each_second_and_logged_each_half_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [100.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(watch, "memory_bytes", lambda _: 1_500_000_000)
    said: list[str] = []
    steps: list[tuple[int, int]] = []
    mine = Watch(lambda *step: steps.append(step), said.append)
    with caplog.at_level(logging.INFO):
        for step in range(1, 101):
            now[0] = 100.0 + 0.5 * step
            mine.stepped(step, 100, 3.25, 100 * step, objective=Objective())
    assert steps == [(step, 100) for step in range(1, 101)]
    assert len(said) == 50
    assert said[1] == "loss 3.25, 200 tokens/s, 1.50 GB"
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "training step 1 of 100: loss 3.25, 200 tokens/s, 1.50 GB",
        "training step 61 of 100: loss 3.25, 200 tokens/s, 1.50 GB",
    ]
    now[0] += 1
    mine.stepped(1, 1, 2.0, 0, objective=Budget())
    assert said[-1].startswith("loss 2, half removed, ")


def test_memory_is_that_of_the_process_on_a_cpu() -> None:
    assert watch.memory_bytes(torch.device("cpu")) > 50_000_000
