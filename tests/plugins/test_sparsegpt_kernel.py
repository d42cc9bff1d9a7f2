"""The function that is compiled for a GPU prunes as the plain loop; here it runs as it is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from prunebench import Context, anatomy, lowest
from prunebench.plugin.host import load_plugins
from prunebench_plugins import sparsegpt_kernel
from prunebench_plugins.sparsegpt import Rows, inverse_factor, sweep
from prunebench_plugins.sparsegpt_kernel import Kernel, swept
from tiny import tiny_model

FEATURES = 96


def problem(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns [in, rows], and U of correlated inputs; float64."""
    generator = torch.Generator().manual_seed(rows)
    inputs = torch.randn(FEATURES, 3 * FEATURES, generator=generator, dtype=torch.float64)
    inputs = inputs.cumsum(dim=0)
    factor = inverse_factor(inputs @ inputs.t(), 0.01)
    assert factor is not None
    return torch.randn(FEATURES, rows, generator=generator, dtype=torch.float64), factor


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparsegpt_kernel, "_compiled", lambda: swept)


def both(
    linears: Sequence[Rows], kernel: Kernel, **options: object
) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns after the plain loop and after the kernel; the losses are compared here."""
    columns, factor = problem(sum(linear.size for linear in linears))
    plain, ours = columns.clone(), columns.clone()
    losses = [
        sweep(each, factor, linears, kernel=by, **options)  # type: ignore[arg-type]
        for each, by in ((plain, None), (ours, kernel))
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)
    assert losses[0]
    return plain, ours


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("block_size", [8, 40, 128])
@pytest.mark.parametrize(
    "linears",
    [
        [Rows(11, 0.5)],
        [Rows(4, 0.25), Rows(7, 0.75)],
        [Rows(11, "2:4")],
        [Rows(4, "1:4"), Rows(7, "3:4")],
        [Rows(5, "5:8")],
        [Rows(5, "4:6")],
    ],
)
def test_the_kernel_prunes_as_the_plain_loop(linears: list[Rows], block_size: int) -> None:
    kernel = Kernel()
    plain, ours = both(linears, kernel, block_size=block_size)
    assert torch.equal(plain == 0, ours == 0)
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-12)
    assert kernel.refused is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own imports
@pytest.mark.parametrize("sparsity", [0.5, "2:4"])
def test_one_kernel_serves_any_number_of_rows(
    sparsity: float | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.testing import CompileCounter

    made = CompileCounter()
    compiled = torch.compile(swept, fullgraph=True, backend=made)
    monkeypatch.setattr(sparsegpt_kernel, "_compiled", lambda: compiled)
    kernel = Kernel()
    for rows in (5, 9, 12):
        plain, ours = both([Rows(rows, sparsity)], kernel)
        assert torch.equal(plain == 0, ours == 0)
    assert kernel.refused is None
    assert made.frame_count == 1


@pytest.mark.usefixtures("uncompiled")
def test_of_equal_costs_the_lower_index_goes() -> None:
    columns = torch.ones(8, 3, dtype=torch.float64)
    sweep(columns, torch.eye(8, dtype=torch.float64), [Rows(3, "1:4")], kernel=Kernel())
    assert columns.t().tolist() == [[0, 0, 0, 1] * 2] * 3


@pytest.mark.usefixtures("uncompiled")
def test_a_mask_that_is_decided_already_is_kept() -> None:
    columns, _ = problem(9)
    gone = lowest(columns.abs(), 0.5, group="row")
    plain, ours = both([Rows(9, 0.5)], Kernel(), gone=gone)
    assert torch.equal(ours == 0, gone)
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("linears", "options"),
    [([Rows(5, "16:32")], {}), ([Rows(5, "2:4")], {"threshold": True})],
)
def test_wide_groups_and_the_ties_of_the_released_code_are_left_to_the_loop(
    linears: list[Rows], options: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparsegpt_kernel, "_compiled", lambda: pytest.fail("not for the kernel"))
    plain, ours = both(linears, Kernel(), **options)
    assert torch.equal(plain, ours)


def test_without_a_compiler_the_result_is_the_same_and_the_reason_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def compiled() -> None:
        calls.append(1)
        raise RuntimeError("no Triton here\nand more")

    monkeypatch.setattr(sparsegpt_kernel, "_compiled", compiled)
    kernel = Kernel()
    plain, ours = both([Rows(11, "2:4")], kernel, block_size=32)
    assert torch.equal(plain == 0, ours == 0)
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-12)
    assert kernel.refused == "RuntimeError: no Triton here"
    assert len(calls) == 1, "nobody asks twice"


def test_the_reason_is_a_note_of_the_method_and_of_ria() -> None:
    for name, options in (("sparsegpt", {}), ("ria", {"reconstruction": True})):
        cls = load_plugins()["method"][name].value
        method = cls(cls.Options(sparsity=0.5, **options))
        getattr(method, "updates", method).kernel.refused = "no Triton here"
        model = tiny_model("llama")
        ids = torch.arange(64).view(4, 16)
        context = Context(ids, 0, list(range(len(anatomy(model).layers))))
        with torch.no_grad():
            method.prune(model, context)
        assert context.notes["not_compiled"] == "no Triton here"


@pytest.mark.usefixtures("uncompiled")
def test_the_environment_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiling(*arguments: Any) -> Any:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = "somewhere"
        return swept(*arguments)

    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr(sparsegpt_kernel, "_compiled", lambda: compiling)
    kernel = Kernel()
    both([Rows(3, 0.5)], kernel)
    assert kernel.refused is None
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
