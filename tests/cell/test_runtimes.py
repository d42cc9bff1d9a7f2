"""Runtimes in a cell: both models converted and timed, tokens judged, faults that cost one figure."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fake_runtime import Fake, registry
from prunebench.cell import runtimes
from prunebench.cell.phases import Phases
from prunebench.cell.runtime_worker import Job, work
from prunebench.cell.runtimes import Subject, UnavailableRuntimeError, measure_runtimes
from prunebench.cell.setup import CellSetup
from prunebench.errors import described
from prunebench.experiment.cell import Cell
from prunebench.experiment.measures import LatencySpec
from prunebench.experiment.model import ModelRef
from prunebench.experiment.plugins import MethodRef, RuntimeRef
from prunebench.measure.audit import audit, dense_facts
from prunebench.model.adapter import Adapter
from prunebench.model.dense_indices import DenseIndices
from prunebench.model.load import load_pruned
from prunebench.model.surgery import remove_layers
from prunebench.plugin import host
from tiny import tiny_checkpoint, tiny_model, tiny_tokenizer

SHAPE = LatencySpec(prompt=6, new_tokens=4, batch_size=1, min_rounds=2, min_time_s=0.0)


@pytest.fixture(autouse=True)
def in_this_process(tmp_path, monkeypatch):
    """Workers run here; what they raise is said as their process says it."""
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(host, "load_plugins", registry)
    Fake.converted.clear()
    Fake.opened.clear()

    def run(job: Job):
        threads = torch.get_num_threads()
        try:
            answer = work(Job.model_validate_json(job.model_dump_json()))
        except Exception as error:
            raise UnavailableRuntimeError(described(error)) from error
        finally:
            torch.set_num_threads(threads)
        if answer.reason is not None:
            raise UnavailableRuntimeError(answer.reason)
        return answer

    monkeypatch.setattr(runtimes, "run_worker", run)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("dense") / "model")


@pytest.fixture
def setup(checkpoint):
    def setup(*options, shape=SHAPE) -> CellSetup:
        refs = [
            RuntimeRef(
                name="fake",
                distribution="prunebench-fake",
                version="1.0",
                options=Fake.Options(**one).model_dump(),
                given=one,
            )
            for one in options
        ]
        cell = Cell(
            model=ModelRef(name="m", kind="folder", location=str(checkpoint), sha256="a" * 64),
            method=MethodRef(name="by-hand", distribution="x", version="1", options={}),
            latency=(shape,),
            runtimes=tuple(refs),
            threads=1,
        )
        return CellSetup(cell, registry(), Phases(), "cpu", folder=checkpoint)

    return setup


@pytest.fixture(scope="module")
def pruned() -> Subject:
    model = tiny_model("llama")
    dense = dense_facts(model)
    remove_layers(model, [1])
    indices = DenseIndices([0, 2, 3])
    return Subject(model, tiny_tokenizer(), {"method": "by hand"}, audit(model, dense, indices))


def test_both_models_are_timed_and_the_tokens_are_the_models_own(setup, pruned, checkpoint):
    given = setup({})
    [found] = measure_runtimes(given, pruned)
    [one] = found.latency
    assert found.reason is None
    assert given.flags.found == []
    assert one.tokens is not None
    assert (one.tokens.compared, one.tokens.first_difference) == (4, None)
    assert one.token_speedup is not None
    assert one.token_speedup.rounds == one.rounds == 8
    assert (one.unpaired, one.threads) == (None, 1)
    # Dense is stored in the cell's precision already: it is read where it is.
    assert Fake.converted[1] == checkpoint
    layers = [len(load_pruned(path).model.layers) for path in Fake.opened]
    assert layers == [3, 4]
    assert found.conversion is not None
    assert found.dense_conversion is not None
    assert found.conversion.bytes < found.dense_conversion.bytes
    assert [phase.phase for phase in given.phases.times] == ["tokens", "convert", "runtimes"]


def test_dense_is_converted_once_for_all_cells_and_has_no_ratio(setup, pruned):
    measure_runtimes(setup({}), pruned)
    dense = Subject(tiny_model("llama"), tiny_tokenizer())
    [found] = measure_runtimes(setup({}), dense)
    assert len(Fake.converted) == 2
    assert found.conversion is not None
    assert found.conversion.earlier
    assert found.latency[0].token_speedup is None
    assert found.latency[0].token_s is not None


def test_a_fault_costs_this_runtime_and_no_other(setup, pruned):
    faults = {
        "refuses": "it has no kernel",
        "raises": "no such thing",
        "short": "the runtime ended after 2 tokens",
        "other": "other tokens than the model's own code, first at new token 2 of 4",
    }
    given = setup({}, *({"fault": fault} for fault in faults))
    good, *bad = measure_runtimes(given, pruned)
    assert good.reason is None
    # Both models for every option that got so far: options decide what a conversion is.
    assert len(Fake.converted) == 6
    for found, flag, (fault, reason) in zip(bad, given.flags.found, faults.items(), strict=True):
        assert reason in (found.reason or "")
        assert reason in flag
        assert f"fault={fault}" in flag


def test_other_precisions_may_give_other_tokens(setup, pruned):
    [found] = measure_runtimes(setup({"fault": "other", "precision": "int8"}), pruned)
    assert found.reason is None
    assert found.latency[0].tokens is not None
    assert not found.latency[0].tokens.same


def test_a_batch_is_no_shape_for_a_runtime(setup, pruned):
    shape = SHAPE.model_copy(update={"batch_size": 2})
    [found] = measure_runtimes(setup({}, shape=shape), pruned)
    assert "no shape with batch size 1" in (found.reason or "")
    assert not Fake.converted


def test_a_model_with_an_adapter_beside_it_is_no_whole_model(setup):
    model = tiny_model("llama")
    a, b = torch.ones(2, 48), torch.ones(48, 2)
    Adapter({"model.layers.0.self_attn.q_proj": (a, b)}, 1.0).attach(model)
    [found] = measure_runtimes(setup({}), Subject(model, tiny_tokenizer()))
    assert "a LoRA adapter is beside its weights" in (found.reason or "")


def test_without_room_for_both_the_pruned_model_is_timed_alone(setup, pruned, monkeypatch):
    monkeypatch.setattr(runtimes, "_no_room", lambda *_: "both models take 9 GB and 1 GB are free")
    [found] = measure_runtimes(setup({}), pruned)
    assert found.latency[0].unpaired == "both models take 9 GB and 1 GB are free"
    assert found.latency[0].token_speedup is None
    assert len(Fake.opened) == 1


def test_a_package_that_is_missing_is_named(setup, pruned, monkeypatch):
    monkeypatch.setattr(Fake, "packages", ("surely-not-there",))
    [found] = measure_runtimes(setup({}), pruned)
    assert found.reason == ("surely-not-there is not installed (pip install surely-not-there)")
