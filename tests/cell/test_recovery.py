"""A cell with a recovery: pruned, trained and measured, with its cost on the record."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch

from prunebench.cell.events import EventWriter
from prunebench.cell.run import run_cell
from prunebench.experiment.cell import Cell
from prunebench.model.load import load_pruned
from prunebench.plugin.host import load_plugins
from prunebench.record.record import Record
from prunebench.suite.load import load_suite
from prunebench.suite.plan import plan
from rig import Rig

LOOSE = """
import torch
from prunebench import Recovery, hookimpl

class Loose(Recovery):
    name = "loose"
    def recover(self, model, context):
        assert torch.is_grad_enabled()
        assert not context.notes
        model.train().requires_grad_(True)
        model(context.windows).logits.sum().backward()

@hookimpl
def prunebench_register_recovery():
    return Loose
"""
"""Leaves the model in training mode and with gradients, as no recovery should."""


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    return Rig(tmp_path_factory.mktemp("recovery"))


def cell_of(rig: Rig, method: str) -> Cell:
    registry = load_plugins()
    suite = load_suite(
        rig.suite(method, more="keep_models: true"),
        registry=registry,
    )
    return plan(suite, registry).cells[1]


def run(cell: Cell, keep: Path | None = None) -> tuple[Record, str]:
    threads = torch.get_num_threads()
    events = io.StringIO()
    record = run_cell(cell, events=EventWriter(events), command="none", keep=keep)
    torch.set_num_threads(threads)
    return record, events.getvalue()


@pytest.mark.parametrize(
    "method", ["magnitude: {sparsity: 2:4, recovery: RECOVERY}", "shortgpt: {recovery: RECOVERY}"]
)
def test_a_recovered_model_is_measured_with_its_cost_on_the_record(rig, method, tmp_path):
    lora = (
        "{lora: {epochs: 3, learning_rate: 0.01, data: {corpus: text.txt, windows: 4, length: 24}}}"
    )
    plain, _ = run(cell_of(rig, method.replace("RECOVERY", "null")))
    cell = cell_of(rig, method.replace("RECOVERY", lora))
    record, events = run(cell, keep=tmp_path / "kept")
    assert record.status == "ok", record.error
    assert record.cost.recover_s > 0
    assert record.cost.recover_tokens == 3 * 4 * 24
    assert record.cost.recover_sha256 != record.cost.calibration_sha256
    assert record.recovery_notes["last_loss"] < record.recovery_notes["first_loss"]
    assert record.quality.perplexity[0].perplexity < plain.quality.perplexity[0].perplexity
    assert record.audit.model_dump(exclude={"linears"}) == plain.audit.model_dump(
        exclude={"linears"}
    )
    assert record.provenance["recovery_reference"]["arxiv"] == "2106.09685"
    assert '["recover", 3, 3, "loss ' in events
    assert (tmp_path / "kept" / "config.json").is_file()
    assert plain.cost.recover_s is None
    assert Record.model_validate_json(record.model_dump_json(by_alias=True)) == record


def test_the_harness_resets_mode_and_gradients_after_a_recovery(rig, monkeypatch):
    rig.plugin("loose", LOOSE)
    monkeypatch.syspath_prepend(str(rig.folder / "site"))
    record, _ = run(cell_of(rig, "magnitude: {recovery: loose}"))
    assert record.status == "ok", record.error
    assert record.cost.recover_tokens is None
    assert record.provenance["recovery_plugin"] == "loose 1.0"
    wanda, _ = run(cell_of(rig, "wanda"))
    assert record.cost.recover_sha256 == wanda.cost.calibration_sha256


def test_a_training_that_fails_is_a_failed_record_and_nothing_is_saved(rig, tmp_path):
    lora = "{lora: {learning_rate: 1e+18, max_grad_norm: null, batch_size: 1, epochs: 4}}"
    record, _ = run(cell_of(rig, f"magnitude: {{recovery: {lora}}}"), keep=tmp_path / "kept")
    assert (record.status, record.error.phase) == ("failed", "recover")
    assert "is not finite" in record.error.message
    assert "learning_rate" in record.error.hint
    assert not (tmp_path / "kept").exists()


def test_a_recovery_that_is_not_installed_fails_before_anything_is_loaded(rig):
    cell = cell_of(rig, "magnitude: {recovery: lora}")
    gone = cell.model_copy(update={"recovery": cell.recovery.model_copy(update={"name": "gone"})})
    record, _ = run(gone)
    assert (record.status, record.error.phase) == ("failed", "start")
    assert "no plugin registers the recovery 'gone'" in record.error.message


def test_a_recovery_trains_on_answers_and_keeps_the_best_weights(rig):
    rows = [
        {"instruction": f"{number} times two", "output": "the quick brown fox"}
        for number in range(12)
    ]
    (rig.folder / "examples.json").write_text(json.dumps(rows))
    data = "{corpus: examples.json, prompt: alpaca, windows: 12, length: 200}"
    options = f"epochs: 6, batch_size: 3, learning_rate: 0.01, val_windows: 3, eval_steps: 4, data: {data}"
    record, _ = run(cell_of(rig, f"magnitude: {{recovery: {{lora: {{{options}}}}}}}"))
    assert record.status == "ok", record.error
    notes = record.recovery_notes
    assert [step for step, _ in notes["validation_curve"]] == [4, 8, 12, 16, 18]
    assert notes["best_validation_loss"] < notes["validation_curve"][0][1]
    assert notes["last_loss"] < notes["first_loss"]
    # 9 windows, 6 times, without their padding
    assert record.cost.recover_tokens < 6 * 9 * 200


def test_a_model_with_a_kept_adapter_is_measured_with_it_and_counted_without(rig, tmp_path):
    data = "{corpus: text.txt, windows: 4, length: 24}"
    lora = f"{{lora: {{merge: false, epochs: 3, learning_rate: 0.01, data: {data}}}}}"
    plain, _ = run(cell_of(rig, "magnitude: {sparsity: 0.5}"))
    cell = cell_of(rig, f"magnitude: {{sparsity: 0.5, recovery: {lora}}}")
    record, _ = run(cell, keep=tmp_path / "kept")
    assert record.status == "ok", record.error
    assert record.quality.perplexity[0].perplexity < plain.quality.perplexity[0].perplexity
    assert record.audit == plain.audit
    assert record.recovery_notes["adapter_parameters"] > 0
    assert not record.flags
    ids = torch.arange(2, 34).view(2, 16)
    model, base = (load_pruned(tmp_path / "kept", adapter=each) for each in (True, False))
    assert not torch.equal(model(ids).logits, base(ids).logits)


def test_a_kept_adapter_is_named_if_the_folder_becomes_the_model_of_a_suite(rig, tmp_path):
    lora = "{lora: {merge: false, max_steps: 1, data: {corpus: text.txt, windows: 4, length: 24}}}"
    run(cell_of(rig, f"magnitude: {{recovery: {lora}}}"), keep=tmp_path / "kept")
    registry = load_plugins()
    suite = load_suite(
        rig.suite("dense"), registry=registry, overrides=[f"models={tmp_path / 'kept'}"]
    )
    record, _ = run(plan(suite, registry).cells[0])
    assert record.status == "ok", record.error
    [flag] = record.flags
    assert flag.endswith("keeps an adapter in adapter/, which was not loaded")


@pytest.mark.parametrize("replacement", ["layer", "swiglu"])
def test_removed_layers_are_replaced_measured_and_kept(rig, replacement, tmp_path):
    """The dense model's layers come from its checkpoint; the network is loaded with the rest."""
    options = f"replacement: {replacement}, batch_size: 1, gradient_accumulation_step: 2, lr: 0.01"
    data = "data: {corpus: text.txt, windows: 8, length: 24}"
    method = f"apply: {{units: {{layers: [2]}}, recovery: {{streamline: {{{options}, {data}}}}}}}"
    record, _ = run(cell_of(rig, method), keep=tmp_path / "kept")
    assert record.status == "ok", record.error
    assert record.recovery_notes["replaced_layers"] == [1, 2]
    assert record.audit.kept_layers == [0, 1, 3]
    assert record.audit.removed_blocks == (
        [] if replacement == "layer" else ["1.attention", "1.mlp"]
    )
    assert record.cost.recover_tokens == 7 * 24
    assert not record.flags
    model = load_pruned(tmp_path / "kept")
    assert sum(each.numel() for each in set(model.parameters())) == record.audit.parameters
    plain = json.loads((tmp_path / "kept" / "pruning.json").read_text())["plain"]
    assert plain == (replacement == "layer")


def test_a_recovery_that_replaces_layers_says_what_is_wrong(rig):
    gap, _ = run(cell_of(rig, "apply: {units: {layers: [0, 2]}, recovery: streamline}"))
    assert (gap.status, gap.error.phase) == ("failed", "recover")
    assert "layer 1 is left between the removed layers 0, 2" in gap.error.message
