"""LLM-Streamline: windows, cosines and a short training, as the official code gave them."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
import torch

from prunebench import Context
from prunebench.model.dense_source import CheckpointSource
from prunebench.model.fetch import fetch_checkpoint
from prunebench.model.source import resolve
from prunebench.plugin.host import load_plugins
from smollm2 import REFERENCE, reference_file, reference_tokens, smollm2

pytestmark = pytest.mark.parity


@cache
def official() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(reference_file("related/llm-streamline.json").read_text())
    return found


def method(**options: Any) -> Any:
    kind = load_plugins()["method"]["llm-streamline"].value
    return kind(kind.Options.model_validate(options))


@pytest.fixture(scope="module")
def similarities() -> dict[tuple[int, str], Any]:
    """The notes of the method by the span of its window and its mode, on calib[:8]."""
    model, found = smollm2().model, {}
    with torch.no_grad():
        for span, mode in ((4, "reference"), (5, "reference"), (5, "clean")):
            context = Context(reference_tokens("calib")[:8], 0, list(range(30)))
            context.remove_layers = lambda *_: None  # the same model is used again
            method(layer_intervals=4, keep_first=span == 5, mode=mode).prune(model, context)
            found[span, mode] = context.notes
    return found


@pytest.mark.parametrize("span", [4, 5])
def test_cosines_and_windows_are_those_of_the_official_code(span, similarities, agreement) -> None:
    ours = similarities[span, "reference"]
    theirs = official()[f"interval{span}"]
    worst = max(
        abs(mine - other) for mine, other in zip(ours["similarity"], theirs["mean"], strict=True)
    )
    agreement(
        (
            f"llm-streamline, 4 layers, states {span} apart",
            "get_cosine.py",
            f"cosines differ by at most {worst:.1e} (<= 1e-5)",
            f"window {ours['window']}",
            f"removed {ours['removed_layers']}",
        )
        + ("",) * 4
    )
    assert worst <= 1e-5
    assert ours["window"] == [theirs["best"], theirs["best"] + span - 1]
    assert ours["removed_layers"] == [*range(theirs["best"] + span - 4, theirs["best"] + span)]


def test_without_the_final_norm_only_the_last_window_differs(similarities) -> None:
    clean, reference = (similarities[5, mode]["similarity"] for mode in ("clean", "reference"))
    assert clean[:-1] == pytest.approx(reference[:-1], abs=1e-9)
    assert abs(clean[-1] - reference[-1]) > 0.1


def seed_with_order(*epochs: list[int]) -> int:
    """A seed whose generator shuffles the training windows like this."""
    for seed in range(1000):
        generator = torch.Generator().manual_seed(seed)
        torch.randint(2**31, (), generator=generator)  # the training draws a seed for dropout
        if all(
            torch.randperm(len(wanted), generator=generator).tolist() == wanted for wanted in epochs
        ):
            return seed
    raise AssertionError("no such seed")


def test_a_training_by_states_follows_the_official_one(agreement) -> None:
    expected = official()["training"]
    first, *rest = expected["dataset_index_order"]
    assert first == 0  # the one validation window
    model, calibration = smollm2().model, reference_tokens("calib")
    windows = torch.cat([calibration[16:18], calibration[24:25]])
    asset = load_plugins().registered("model")
    folder = fetch_checkpoint(
        resolve("smollm2-135m-instruct", base=REFERENCE, assets=asset, dtype="float32")
    )
    context = Context(
        windows,
        seed_with_order(rest[:2], rest[3:5]),
        list(range(30)),
        dense_source=CheckpointSource(folder, "float32"),
    )
    best = expected["best"]
    context.remove_layers(model, range(best + 1, best + expected["interval"]))
    kind = load_plugins()["recovery"]["streamline"].value
    options = {
        "batch_size": expected["batch"],
        "gradient_accumulation_step": expected["accumulation"],
        "epoches": expected["epochs"],
        "lr": expected["lr"],
        "min_lr": expected["min_lr"],
        "wd": expected["wd"],
        "val_share": 0.34,
        "mode": "reference",
    }
    with torch.enable_grad():
        kind(kind.Options.model_validate(options)).recover(model, context)
    before, *after = (loss for _, loss in context.notes["validation_curve"])
    wanted = expected["validation_mse_before"], *expected["validation_mse_after"]
    worst = max(abs(mine / other - 1) for mine, other in zip((before, *after), wanted, strict=True))
    agreement(
        (
            "streamline, 4 steps on layers 12 to 16",
            "train_lightweightnetwork.py",
            f"MSE differs by at most {worst:.1e} (<= 1e-4)",
            " ".join(f"{value:.5f}" for value in (before, *after)),
            " ".join(f"{value:.5f}" for value in wanted),
        )
        + ("",) * 4
    )
    assert context.notes["steps"] == expected["optimizer_steps"]
    assert worst <= 1e-4
