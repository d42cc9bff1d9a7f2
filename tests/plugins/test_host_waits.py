"""How often pruning a linear looks at a value: on a GPU, each look waits for all work before it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from prunebench import LinearStats, lowest
from prunebench.layerwise import masks
from prunebench.plugin.host import load_plugins
from prunebench_plugins.sparsegpt import Rows, _cheapest, _prune_block
from prunebench_plugins.sparsegpt_kernel import Kernel, swept

LOOKS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select"}


class Looks(TorchDispatchMode):
    """Counts in its block what makes Python wait for values."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        name = func.overloadpacket.__name__
        # How many rows a bool index chooses is a value, too.
        by_mask = name == "index" and any(
            each is not None and each.dtype == torch.bool for each in args[1]
        )
        self.count += by_mask or name in LOOKS
        return func(*args, **(kwargs or {}))


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "looks_are_cheap", lambda _: False)


def looks(name: str, sparsity: float | str, rows: int, features: int) -> int:
    """While two linears that read the same input are pruned."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(features, 2 * features, generator=generator)
    gathered = {"hessian": inputs @ inputs.t(), "input_norm": inputs.norm(dim=1)}
    stats = [LinearStats(0, name, generator, gathered) for name in ("a", "b")]
    weights = [torch.randn(rows, features, generator=generator) for _ in stats]
    cls = load_plugins()["method"][name].value
    method = cls(cls.Options(sparsity=sparsity))
    with torch.no_grad(), Looks() as seen:
        method.prune_group(weights, stats)
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    assert zeros == rows * features, "half of both"
    return seen.count


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("sparsity", [0.5, "2:4"])
def test_looks_do_not_grow_with_rows_and_columns(name: str, sparsity: float | str) -> None:
    small, large = looks(name, sparsity, 8, 128), looks(name, sparsity, 24, 384)
    assert small == large
    assert 1 <= large <= 2, "once for each linear, or twice for all that share a Hessian"


def test_a_look_is_seen() -> None:
    with Looks() as seen:
        bool(torch.ones(3).sum() > 2)
        int(torch.ones(()))
        torch.ones(3)[torch.tensor([True, False, True])]
    assert seen.count == 3


@pytest.mark.parametrize("sparsity", [0.5, "2:4", "3:7"])
@pytest.mark.parametrize("threshold", [False, True])
def test_no_look_at_all_inside_a_block(sparsity: float | str, threshold: bool) -> None:
    """On the meta device there are no values, so any look raises."""
    block = torch.empty(28, 6, device="meta")
    factor = torch.empty(28, 28, device="meta")
    of = int(sparsity.split(":")[1]) if isinstance(sparsity, str) else None
    choose, _ = _cheapest([Rows(6, sparsity)], threshold)
    assert _prune_block(block, factor, choose, of).is_meta


@pytest.mark.parametrize("of", [None, 4, 7])
def test_no_look_at_all_in_the_kernel(of: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunebench_plugins.sparsegpt_kernel._compiled", lambda: swept)
    shape = (28, 6) if of is None else (6,)
    chosen = torch.empty(shape, device="meta", dtype=torch.bool if of is None else torch.int8)
    block, factor = torch.empty(28, 6, device="meta"), torch.empty(28, 28, device="meta")
    kernel = Kernel()
    assert kernel.prune_block(block, factor, chosen, of).is_meta
    assert kernel.refused is None


@pytest.mark.parametrize("sparsity", [0.5, "2:4", "3:7", "20:32"])
@pytest.mark.parametrize("group", ["row", "matrix"])
def test_no_look_at_all_in_the_masks_of_known_scores(sparsity: Any, group: Any) -> None:
    score = torch.empty(6, 224, device="meta")
    assert lowest(score, sparsity, group=group, finite=True).shape == (6, 224)


@pytest.mark.parametrize("sparsity", [0.0, 0.4, 1.0, "1:4", "2:4", "3:4", "20:32"])
@pytest.mark.parametrize("group", ["row", "matrix"])
def test_masks_are_the_same_without_looks(
    sparsity: Any, group: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(1)
    for distinct in (3, 1000):  # with many ties, and with few
        score = torch.randint(distinct, (9, 64), generator=generator).float()
        usual = lowest(score, sparsity, group=group)
        with monkeypatch.context() as patch:
            patch.setattr(masks, "looks_are_cheap", lambda _: False)
            assert torch.equal(lowest(score, sparsity, group=group), usual)
