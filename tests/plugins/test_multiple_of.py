"""`multiple_of`: widths that readers of a model can say, chosen while groups compete."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import prunebench
from prunebench.errors import PrunebenchError
from prunebench.experiment.cell import Cell
from prunebench.model.anatomy import Block, anatomy
from prunebench.testing.models import tiny_calibration
from prunebench_plugins.flap_choice import lowest_of_all
from prunebench_plugins.llm_pruner_groups import Pool, global_counts
from tiny import tiny_model

ALL = {"protect_first": 0, "protect_last": 0}
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("llm-pruner", {**ALL, "importance": "l1", "ratio": 0.3}),
    ("llm-pruner", {**ALL, "importance": "l2", "ratio": 0.4, "global_pruning": True}),
    ("llm-pruner", {"importance": "l2", "ratio": 0.4, "global_pruning": True, "mode": "reference"}),
    ("llm-pruner", {"importance": "l1", "target_parameters": 0.2}),
    ("hywia", {"ratio": 0.3, "protect_first": 0}),
    ("flap", {"ratio": 0.3}),
    ("flap", {"ratio": 0.3, "structure": "AL-MM", "remove_heads": 2}),
    ("flap", {"ratio": 0.3, "structure": "UL-UM"}),
]


def widths(model: Any) -> list[int]:
    parts = anatomy(model)
    return [parts.groups(layer, "mlp") for layer in parts.layers]


@pytest.mark.parametrize(("method", "options"), SETTINGS, ids=str)
def test_mlps_keep_a_multiple_and_about_as_many_channels(
    method: str, options: dict[str, Any]
) -> None:
    found = {}
    for multiple in (1, 16):
        model = tiny_model("llama")
        prunebench.prune(
            model,
            method,
            options={**options, "multiple_of": multiple},
            calibration=tiny_calibration(2, 12),
        )
        found[multiple] = widths(model)
    assert found[16] != [80] * 4
    assert all(width % 16 == 0 for width in found[16])
    assert any(width % 16 for width in found[1]), "without it they are anything"
    # Not rounded up or down throughout: the amount that was asked for stays.
    assert abs(sum(found[16]) - sum(found[1])) <= 32


def test_the_residual_stream_keeps_a_multiple() -> None:
    model = tiny_model("llama")
    options = {"granularity": "channel", "importance": "l1", "ratio": 0.3, "multiple_of": 8}
    prunebench.prune(model, "llm-pruner", options=options, calibration=tiny_calibration(2, 12))
    assert model.config.hidden_size == 32  # 0.7 * 48 is 33.6


@given(
    present=st.integers(1, 300), multiple=st.sampled_from([1, 2, 16, 64]), share=st.floats(0, 0.99)
)
def test_rounding_leaves_a_multiple_or_everything(present: int, multiple: int, share: float):
    pool = Pool(Block(0, "mlp"), present, present, 1, 3, multiple)
    gone = pool.rounded(int(share * present))
    kept = present - gone
    assert 0 <= gone < present or (present == 1 and not gone)
    assert kept % multiple == 0 or gone == 0
    assert abs(gone - int(share * present)) <= max(multiple - 1, 0)
    assert pool.rounded(0) == 0


@given(
    shapes=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    multiple=st.sampled_from([1, 4, 8]),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_runs_compete_by_their_mean(shapes: list[int], multiple: int, share: float, seed: int):
    """The lowest of each pool go, in whole runs; the budget is met within one run."""
    generator = torch.Generator().manual_seed(seed)
    pools = [Pool(Block(i, "mlp"), n, n, 1, 3, multiple) for i, n in enumerate(shapes)]
    scores = [torch.rand(n, generator=generator, dtype=torch.float64) for n in shapes]
    budget = share * 3 * sum(shapes)
    gone = lowest_of_all(pools, scores, budget=budget)
    for some, score, pool in zip(gone, scores, pools, strict=True):
        kept = int((~some).sum())
        assert kept >= 1 and (kept % multiple == 0 or not some.any())
        if some.any():
            assert score[some].max() <= score[~some].min()
        assert pool.items(score).sizes.sum() == max(0, pool.present - multiple)
    removed = 3 * sum(int(some.sum()) for some in gone)
    most = 3 * sum(max(0, n - multiple) for n in shapes)
    assert removed == most or abs(removed - budget) <= 3 * multiple
    if multiple == 1:
        return
    wanted = sum(int(some.sum()) for some in gone)
    counts = global_counts(pools, scores, released=False)(wanted / sum(shapes))
    assert sum(counts) <= most


def test_one_is_the_default_and_no_part_of_the_id() -> None:
    def cell(method: str, **options: Any) -> Cell:
        from prunebench.app.one_cell import one_cell
        from prunebench.plugin.host import load_plugins

        return one_cell(
            "smollm2-135m-instruct",
            {method: options},
            load_plugins(),
            command="test",
            calibration={"corpus": "boolq-passages", "windows": 2, "length": 32},
        )

    for method in ("llm-pruner", "flap", "hywia"):
        assert cell(method, multiple_of=1).id == cell(method).id
        assert cell(method, multiple_of=64).id != cell(method).id
        with pytest.raises(PrunebenchError, match="multiple_of"):
            cell(method, multiple_of=0)
