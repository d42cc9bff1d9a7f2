"""Metrics of plugins: their figures on the record, and what a metric that misbehaves costs."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import torch

from prunebench.cell import setup
from prunebench.cell.events import EventWriter
from prunebench.cell.run import run_cell
from prunebench.measure.devices.memory import START
from prunebench.measure.devices.memory_peaks import Phase, Recording, timeline
from prunebench.measure.devices.memory_peaks import memory as peaks
from prunebench.measure.quality import text_passes
from prunebench.measure.quality.final_states import states_of
from prunebench.plugin.api.metric import LONGEST_METRIC_NOTES
from prunebench.plugin.files import with_files
from prunebench.plugin.host import load_plugins
from prunebench.record.memory import Memory, PhaseMemory, Timeline
from prunebench.record.record import Record
from prunebench.suite.load import load_suite
from prunebench.suite.plan import plan
from rig import Rig
from task_folder import task_folder
from tiny import tiny_checkpoint

PLUGIN = """
import os
import prunebench
import torch
from prunebench import Field, Figure, Metric, PrunebenchError, hookimpl

class Base(Metric):
    unit = "share"
    higher_is_better = True

class Draw(Base):
    name = "draw"
    class Options(prunebench.Options):
        sides: int = Field(6, gt=1)
    def measure(self, model, tokenizer, context):
        assert context.tokens is None and not torch.is_grad_enabled()
        context.progress(1, 1)
        return torch.rand(()) * self.options.sides

class Text(Base):
    name = "text"
    needs_text = True
    figures = {"tokens": Figure("", False), "never": Figure("s", False)}
    def measure(self, model, tokenizer, context):
        return {"tokens": context.windows.numel(), "undeclared": 0.5, "text": float(context.windows.shape[1])}

class Raises(Base):
    name = "raises"
    figures = {"beside": Figure("nats", False)}
    def measure(self, model, tokenizer, context):
        raise ValueError("no such thing\\nsecond line")

class Mendable(Base):
    name = "mendable"
    def measure(self, model, tokenizer, context):
        raise PrunebenchError("too short", hint="take more")

class Exits(Base):
    name = "exits"
    def measure(self, model, tokenizer, context):
        raise SystemExit(3)

class NoText(Base):
    name = "no-text"
    def measure(self, model, tokenizer, context):
        return context.windows.sum()

class NotFinite(Base):
    name = "not-finite"
    def measure(self, model, tokenizer, context):
        return {"not-finite": float("nan"), "huge": float("inf"), "fine": 1}

class Words(Base):
    name = "words"
    def measure(self, model, tokenizer, context):
        return "seven"

class Nothing(Base):
    name = "nothing"
    def measure(self, model, tokenizer, context):
        return {}

class Untidy(Base):
    name = "untidy"
    def measure(self, model, tokenizer, context):
        os.environ["UNTIDY"] = "1"
        for one in (model.train(), context.dense().train()):
            one.requires_grad_(True)
            one.register_forward_hook(lambda *_: 1 / 0)
        raise RuntimeError("half way")

class Dense(Base):
    name = "dense-zeros"
    def measure(self, model, tokenizer, context):
        assert context.dense() is context.dense()
        return sum(int((weight == 0).sum()) for weight in context.dense().parameters())

class Changes(Base):
    name = "changes"
    class Options(prunebench.Options):
        dense: bool = False
    def measure(self, model, tokenizer, context):
        next((context.dense() if self.options.dense else model).parameters()).mul_(1.01)
        return 1.0

class Notes(Base):
    name = "notes"
    class Options(prunebench.Options):
        size: int = 1
        fails: bool = False
    def measure(self, model, tokenizer, context):
        context.notes["odd"] = {"nan": float("nan"), 3: (1, 2), "text": "x" * self.options.size}
        if self.options.fails:
            raise ValueError("after the notes")
        return 1.0

@hookimpl
def prunebench_register_metric():
    return [Notes, Draw, Text, Raises, Mendable, Exits, NoText, NotFinite, Words, Nothing, Untidy, Dense, Changes]
"""


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = Rig(tmp_path_factory.mktemp("metrics"))
    path = rig.folder / "judges.py"
    path.write_text(PLUGIN)
    with with_files([path]):
        yield rig


def run(
    rig: Rig,
    metrics: str,
    partial_results: Path | None = None,
    *overrides: str,
    number: int = 1,
) -> Record:
    """The pruned cell of a suite with these metrics, in this process; the dense one is number 0."""
    registry = load_plugins()
    changed = [f"quality.metrics={metrics}", *overrides]
    suite = load_suite(
        rig.suite("magnitude: {sparsity: 0.5}"), registry=registry, overrides=changed
    )
    threads = torch.get_num_threads()
    record = run_cell(
        plan(suite, registry).cells[number],
        events=EventWriter(io.StringIO()),
        command="none",
        partial_results=partial_results,
    )
    torch.set_num_threads(threads)
    return record


def figures(record: Record) -> dict[str, Any]:
    assert record.status == "ok", record.error
    return {
        figure.name: figure.value for result in record.quality.metrics for figure in result.figures
    }


def reasons(record: Record) -> dict[str, str | None]:
    assert record.status == "ok", record.error
    return {
        figure.name: figure.reason for result in record.quality.metrics for figure in result.figures
    }


def test_figures_have_a_unit_a_direction_a_text_and_a_version(rig) -> None:
    record = run(rig, "[text]")
    [result] = record.quality.metrics
    assert (result.label, result.distribution, result.text, result.window) == (
        "text",
        "judges.py",
        "text.txt all",
        16,
    )
    assert result.version.startswith("sha256:")
    assert result.tokens_sha256 == record.quality.perplexity[0].tokens_sha256
    told = [(one.name, one.unit, one.higher_is_better, one.value) for one in result.figures]
    assert told == [
        ("text", "share", True, 16.0),
        ("tokens", "", False, 32.0),
        ("never", "s", False, None),
        ("undeclared", "share", True, 0.5),
    ]
    assert result.figures[2].reason == "the metric gave no such figure"
    assert record.flags == [
        "the metric 'text' is not available (never): the metric gave no such figure"
    ]


def test_a_figure_does_not_depend_on_the_metrics_before_it(rig) -> None:
    alone = run(rig, "[draw]")
    after = run(rig, "[{draw: {sides: [12, 6]}}]")
    assert figures(alone)["draw"] == after.quality.metrics[1].figures[0].value
    assert after.quality.metrics[0].figures[0].value == pytest.approx(2 * figures(alone)["draw"])
    assert [one.label for one in after.quality.metrics] == ["draw sides=12", "draw sides=6"]
    assert (
        run(rig, "[draw]", None, "methods=[random]", "seeds=1").quality.metrics[0].figures[0].value
        != figures(alone)["draw"]
    )


def test_notes_are_on_the_record_as_plain_values_also_if_the_metric_fails(rig) -> None:
    for options in ("null", "{fails: true}"):
        record = run(rig, f"[{{notes: {options}}}, draw]")
        assert record.quality.metrics[0].notes == {"odd": {"nan": "NaN", "3": [1, 2], "text": "x"}}
        assert record.quality.metrics[1].notes == {}


def test_notes_that_are_too_long_are_dropped_with_a_flag_and_the_figure_stays(rig) -> None:
    record = run(rig, f"[{{notes: {{size: {LONGEST_METRIC_NOTES}}}}}]")
    [result] = record.quality.metrics
    assert (result.notes, result.figures[0].value) == ({}, 1.0)
    [flag] = record.flags
    assert "the metric 'notes size=50000' wrote notes of 50,0" in flag
    assert flag.endswith("characters, more than 50,000; dropped")


FAULTS = {
    "raises": dict.fromkeys(("raises", "beside"), "ValueError: no such thing: judges.py:31"),
    "mendable": {"mendable": "too short (take more)"},
    "exits": {"exits": "SystemExit: 3"},
    "no-text": {"no-text": "the metric asks for text and the cell has none for it (set `needs_text = True` in the metric)"},
    "not-finite": {"not-finite": "the metric gave nan", "huge": "the metric gave inf", "fine": None},
    "words": {"words": "the metric gave a str, which is no number"},
    "nothing": {"nothing": "the metric gave no such figure"},
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_costs_only_the_metrics_own_figures(rig, name) -> None:
    record = run(rig, f"[{name}, draw]")
    assert reasons(record) == {**FAULTS[name], "draw": None}
    found = figures(record)
    assert all(
        (found[figure] is None) == (reason is not None)
        for figure, reason in reasons(record).items()
    )
    assert record.quality.perplexity[0].perplexity > 1
    assert record.audit.sparsity == pytest.approx(0.5, abs=0.02)
    assert record.flags
    assert all(flag.startswith(f"the metric '{name}' is not available") for flag in record.flags)


def test_what_a_metric_leaves_behind_is_removed_and_flagged(rig) -> None:
    clean = run(rig, "[draw]")
    record = run(
        rig,
        "[untidy, draw]",
        None,
        "profile.latency={prompt: 8, new_tokens: 2, min_rounds: 1, min_time_s: 0}",
    )
    assert figures(record) == {"untidy": None, "draw": figures(clean)["draw"]}
    assert record.speed.latency[0].rounds >= 1
    said = " ".join(record.flags)
    for words in (
        "RuntimeError: half way",
        "left a hook",
        "in training mode; restored",
        "gradients on",
        "changed the environment: UNTIDY",
    ):
        assert words in said
    assert "UNTIDY" not in os.environ


@pytest.mark.parametrize(
    ("options", "which"), [("null", "model"), ("{dense: true}", "dense model")]
)
def test_a_metric_that_changes_a_model_fails_the_cell(rig, options, which) -> None:
    record = run(rig, f"[{{changes: {options}}}]")
    assert (record.status, record.error.phase) == ("failed", "metrics")
    assert record.error.message.endswith(f"changed the {which}")


def test_a_metric_gets_the_dense_model_or_the_reason_why_it_does_not_fit(rig, monkeypatch) -> None:
    assert figures(run(rig, "[dense-zeros]")) == {"dense-zeros": 0.0}
    monkeypatch.setattr(
        "prunebench.cell.dense_model.too_large",
        lambda *_: "it takes 9 GB and 1 GB are free: not timed",
    )
    reason = reasons(run(rig, "[dense-zeros]"))["dense-zeros"]
    assert (
        reason
        == "it takes 9 GB and 1 GB are free (run it where both fit, or leave this metric out)"
    )


def test_figures_of_an_interrupted_cell_are_reused_and_failed_metrics_are_tried_again(
    rig, tmp_path
) -> None:
    first = run(rig, "[draw, raises]", tmp_path / "partial.json")
    again = run(rig, "[draw, raises]", tmp_path / "partial.json")
    assert figures(again) == figures(first)
    assert again.provenance["taken_over_from_an_interrupted_run"] == [
        "perplexity 1",
        "metric draw, 1",
    ]


class RecordedSampler:
    """A sampler that has seen 900 bytes in the phase 'metrics' and 100 in the others."""

    def __init__(self, **_: object) -> None:
        self.phases = ["start"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """There is no process to end."""

    def phase(self, name: str) -> None:
        self.phases.append(name)

    def result(self) -> tuple[Memory, Timeline]:
        sizes = {name: 900 if name == "metrics" else 100 for name in self.phases}
        phases = [PhaseMemory(phase=name, peak_rss_bytes=size) for name, size in sizes.items()]
        recorded = Recording([Phase(START, 0, 100)], Phase("", 1, 100), [], 0.01, "recorded")
        memory = peaks(recorded, None).model_copy(
            update={"phases": phases, "peak_rss_bytes": max(sizes.values())}
        )
        return memory, timeline(recorded)

    def sharing(self) -> None:
        """No GPU was watched."""

    def pcie(self) -> None:
        """No GPU was watched."""


def test_the_memory_of_a_metric_does_not_count_as_the_cells_peak(rig, monkeypatch) -> None:
    monkeypatch.setattr("prunebench.cell.run.MemorySampler", RecordedSampler)
    memory = run(rig, "[draw]").memory
    assert "metrics" in {one.phase for one in memory.phases}
    assert memory.peak_rss_bytes == 100


def test_a_metric_sees_the_answers_to_the_tasks_of_both_models(rig) -> None:
    task_folder(rig.folder / "questions")
    tiny_checkpoint(rig.folder / "long", "llama", max_position_embeddings=512)
    questions = f"{{task: arc_easy, data: {rig.folder / 'questions'}, limit: 6}}"
    changes = f"models={rig.folder / 'long'}", f"quality.tasks={questions}"
    record = run(rig, "[stability]", None, *changes)
    values = figures(record)
    assert values["stability"] == values["stability-arc_easy"]
    assert 0 <= values["stability"] <= 1
    [result] = record.quality.tasks
    assert len(result.correct) == 6
    assert not record.flags


def test_the_dense_cell_leaves_the_others_what_they_need_of_the_dense_model(
    rig, monkeypatch, tmp_path
) -> None:
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path))
    task_folder(rig.folder / "questions")
    tiny_checkpoint(rig.folder / "long", "llama", max_position_embeddings=512)
    questions = f"{{task: arc_easy, data: {rig.folder / 'questions'}, limit: 3}}"
    changes = f"models={rig.folder / 'long'}", f"quality.tasks={questions}"
    metrics = "[kl-divergence, draft-acceptance: {new_tokens: 4}, stability]"
    loads: list[Path] = []
    load = setup.load

    def counted(folder: Path, **how: Any) -> Any:
        loads.append(folder)
        return load(folder, **how)

    monkeypatch.setattr(setup, "load", counted)
    passes: list[Any] = []
    monkeypatch.setattr(text_passes, "states_of", lambda *of: passes.append(of) or states_of(*of))
    texts: list[Any] = []
    windows = setup.evaluation_windows

    def tokenised(spec: Any, *of: Any) -> Any:
        texts.append(spec)
        return windows(spec, *of)

    monkeypatch.setattr(setup, "evaluation_windows", tokenised)
    dense = figures(run(rig, metrics, None, *changes, number=0))
    assert (dense["kl-divergence"], dense["top1-agreement"], dense["stability"]) == (0, 1, 1)
    assert dense["draft-acceptance"] == 1
    pruned = figures(run(rig, metrics, None, *changes))
    assert pruned["kl-divergence"] > 0
    assert pruned["draft-acceptance"] < 1
    assert not passes  # perplexity's passes are enough
    assert len(loads) == 2  # each cell its own model
    assert len(texts) == 2  # once in each cell, for perplexity and two metrics
