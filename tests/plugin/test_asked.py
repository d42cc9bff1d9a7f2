"""Whether the pruned model is what the options ask for, by its audit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from prunebench import Field, LayerwiseOptions, Options
from prunebench.measure.audit import audit, dense_facts
from prunebench.plugin.api.context import Context
from prunebench.plugin.asked import missed
from prunebench.plugin.files import with_files
from prunebench.record.audit import Audit
from tiny import tiny_model

PRUNES_HALF_OF_IT = '''
import torch
from prunebench import LinearMethod, hookimpl


class Half(LinearMethod):
    """Prune half as much as is asked for."""

    name = "half"

    def score(self, weight, stats):
        return weight.abs()

    def mask(self, weight, stats):
        mask = super().mask(weight, stats)
        return mask & (torch.arange(mask.shape[1]) % 2 == 0)


@hookimpl
def prunebench_register_method():
    return Half
'''


class Amounts(Options):
    ratio: float | None = Field(None, description="share")
    count: int | None = Field(None, description="number")
    target_parameters: float | None = Field(None, description="share")


def pruned(change: Any) -> Audit:
    """The audit of a small Llama with four layers that ``change(model, context)`` pruned."""
    model = tiny_model("llama")
    dense = dense_facts(model)
    context = Context(None, 0, list(range(dense.layers)))
    with torch.no_grad():
        change(model, context)
    return audit(model, dense, context.dense_indices)


def zeros(share: float, only: str = "") -> Audit:
    def change(model: Any, context: Context) -> None:
        for path, linear in context.linears(model).items():
            if only in path:
                count = int(share * linear.weight.numel())
                linear.weight.view(-1)[:count] = 0

    return pruned(change)


def without_layers(*layers: int) -> Audit:
    return pruned(lambda model, context: context.remove_layers(model, layers))


def test_a_sparsity_is_counted_in_the_chosen_linears_and_names_the_worst() -> None:
    assert missed(LayerwiseOptions(sparsity=0.5), zeros(0.5)) is None
    assert missed(LayerwiseOptions(sparsity="2:4"), zeros(0.5)) is None
    assert missed(LayerwiseOptions(sparsity=0.5, linears=["mlp"]), zeros(0.5, "mlp")) is None
    fault = missed(LayerwiseOptions(sparsity=0.5), zeros(0.5, "mlp"))
    assert fault is not None
    assert fault.startswith("sparsity 50.0% was asked for, ")
    assert "(layer 0, self_attn.q_proj: 0.0%)" in fault


def test_an_inverted_mask_and_one_that_removes_nothing_are_named() -> None:
    assert "is the mask inverted?" in str(missed(LayerwiseOptions(sparsity=0.3), zeros(0.7)))
    fault = missed(LayerwiseOptions(sparsity=0.3), zeros(0.0))
    assert fault == "sparsity 30.0% was asked for, and nothing was removed"
    assert missed(LayerwiseOptions(sparsity=0.0), zeros(0.0)) is None


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"count": 2}, None),
        ({"count": 4}, None),  # two layers are four sub-blocks
        ({"count": 3}, "count 3 was asked for; 2 layers and 4 sub-blocks were removed"),
        ({"ratio": 0.5}, None),
        ({"ratio": 0.95}, "ratio 95.0% was asked for; removed are parameters "),
        ({"target_parameters": 0.9}, "target_parameters 90.0% was asked for, "),
    ],
)
def test_layers_answer_count_ratio_and_target(asked: dict[str, Any], words: str | None) -> None:
    found = missed(Amounts(**asked), without_layers(1, 2))
    assert found is None if words is None else str(found).startswith(words)


def test_a_cell_that_missed_what_was_asked_is_flagged_and_says_so(tmp_path: Path, run_cell) -> None:
    file = tmp_path / "half.py"
    file.write_text(PRUNES_HALF_OF_IT)
    with with_files([file]):
        record = run_cell("half", {"sparsity": 0.8})
    assert record.status == "ok"
    assert record.audit.missed == "sparsity 80.0% was asked for, 39.9% measured"
    [flag] = [one for one in record.flags if "missed" in one]
    assert flag == f"the method missed what it was asked for: {record.audit.missed}"
    assert not run_cell("magnitude", {"sparsity": 0.5}).flags
