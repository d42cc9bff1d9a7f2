"""Allocations, weight methods and recoveries in one cell, from the suite's words to the record."""

from __future__ import annotations

import pytest
import torch

from prunebench import Context
from prunebench.plugin.api.allocation import allocate
from prunebench.plugin.host import load_plugins
from prunebench.testing import tiny_calibration
from tiny import tiny_model

NOTED = {"alphapruning": "alphas", "ecoflap": "scores", "owl": "outliers", "besa": "training_loss"}
SHORT = {"max_steps": 1, "batch_size": 2, "micro_batch_size": 2}


@pytest.mark.parametrize(
    ("method", "allocation", "recovery"),
    [
        ("wanda", {"alphapruning": {"metric": "alpha_mid"}}, {"lora": SHORT}),
        ("magnitude", {"ecoflap": {}}, {"finetune": SHORT}),
        ("sparsegpt", {"owl": {}}, {"distill": SHORT}),
        ("ria", {"besa": {}}, {"lora": SHORT}),
        ("dsnot", {"owl": {}}, {"finetune": SHORT}),
    ],
)
def test_a_composition_prunes_to_the_sparsity_and_records_what_it_divided(
    run_cell, method: str, allocation, recovery
) -> None:
    options = {"sparsity": 0.5, "allocation": allocation, "recovery": recovery}
    record = run_cell(method, options)
    assert record.status == "ok", record.error
    notes = record.method_notes["allocation"]
    [name] = allocation
    assert notes["name"] == name
    assert notes["mean_share"] == pytest.approx(0.5, abs=1e-3)
    # BESA's linears have shares of their own.
    divided = notes["shares"].values() if name == "besa" else notes["layer_shares"]
    assert len(set(divided)) >= 4
    assert record.audit.sparsity == pytest.approx(0.5, abs=0.02)
    assert record.method_notes[NOTED[name]]
    assert record.recovery_notes["steps"] == 1
    assert record.cost.calibration_sha256


@pytest.mark.parametrize("method", ["random", "magnitude", "wanda", "sparsegpt", "ria"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("alphapruning", {"mapping_type": "layer_wise"}),
        ("ecoflap", {"use_mezo": False, "approach_for_sparsity": "layer"}),
    ],
)
def test_every_linear_loses_its_own_share(method: str, name: str, options) -> None:
    model = tiny_model("llama")
    context = Context(tiny_calibration(), 0, [0, 1, 2, 3])
    kinds = load_plugins().registered("method"), load_plugins().registered("allocation")
    pruner, allocation = kinds[0][method], kinds[1][name]
    with torch.no_grad():
        divided = allocate(allocation(allocation.Options(**options)), model, 0.5, context)
        context.shares = divided
        pruner(pruner.Options(sparsity=0.5)).prune(model, context)
    assert len(set(divided.values())) > 20
    for path, linear in context.linears(model).items():
        zeros = float((linear.weight == 0).float().mean())
        assert zeros == pytest.approx(divided[path], abs=1 / 48 + 1e-6), path


def test_an_allocation_that_cannot_divide_is_a_row_that_says_why(run_cell) -> None:
    limit = {"ecoflap": {"max_sparsity_per_layer": 0.3}}
    record = run_cell("wanda", {"sparsity": 0.5, "allocation": limit})
    assert record.status == "failed"
    assert "max_sparsity_per_layer 0.3 is below the sparsity 0.5" in record.error.message


def test_shares_that_do_not_reach_the_mean_are_a_row_that_says_so(run_cell) -> None:
    record = run_cell("random", {"sparsity": 0.95, "allocation": {"owl": {"spread": 0.3}}})
    assert record.status == "ok", record.error
    assert record.method_notes["allocation"]["mean_share"] < 0.9
    [flag] = record.flags
    assert "missed what it was asked for: sparsity 95.0% was asked for" in flag
