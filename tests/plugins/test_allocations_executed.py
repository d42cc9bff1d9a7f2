"""Allocations, weight methods and recoveries in one cell, from the suite's words to the record."""

from __future__ import annotations

import pytest

SHORT = {"max_steps": 1, "batch_size": 2, "micro_batch_size": 2}


@pytest.mark.parametrize(
    ("method", "allocation", "recovery"),
    [
        ("wanda", {"alphapruning": {"metric": "alpha_mid"}}, {"lora": SHORT}),
        ("magnitude", {"ecoflap": {}}, {"finetune": SHORT}),
        ("sparsegpt", {"ecoflap": {"use_mezo": False, "approach_for_sparsity": "layer"}}, None),
        ("ria", {"alphapruning": {"mapping_type": "layer_wise"}}, None),
    ],
)
def test_a_composition_prunes_to_the_sparsity_and_records_what_it_divided(
    run_cell, method: str, allocation, recovery
) -> None:
    options = {"sparsity": 0.5, "allocation": allocation}
    record = run_cell(method, options if recovery is None else options | {"recovery": recovery})
    assert record.status == "ok", record.error
    notes = record.method_notes["allocation"]
    [name] = allocation
    assert notes["name"] == name
    assert notes["mean_share"] == pytest.approx(0.5, abs=1e-3)
    shares = notes.get("layer_shares") or list(notes["shares"].values())
    assert len(set(shares)) > 1
    assert record.audit.sparsity == pytest.approx(0.5, abs=0.02)
    assert record.method_notes["alphas" if name == "alphapruning" else "scores"]
    assert record.cost.calibration_sha256


def test_an_allocation_that_cannot_divide_is_a_row_that_says_why(run_cell) -> None:
    limit = {"ecoflap": {"max_sparsity_per_layer": 0.3}}
    record = run_cell("wanda", {"sparsity": 0.5, "allocation": limit})
    assert record.status == "failed"
    assert "max_sparsity_per_layer 0.3 is below the sparsity 0.5" in record.error.message
