"""The statistics of a linear's input, for inputs made in the test."""

from __future__ import annotations

import pytest
import torch

from prunebench import InputStatistic, PrunebenchError
from prunebench.layerwise import statistics
from prunebench.layerwise.statistics import (
    STATISTICS,
    Hessian,
    InputNorm,
    InputVariance,
    input_statistics,
)

BATCHES = [(1, 5), (4, 12), (2, 7)]
"""Windows and tokens of each batch: batches may differ in both."""


def batches(
    features: int, dtype: torch.dtype = torch.float32, times: int = 1
) -> list[tuple[torch.Tensor, int]]:
    """Inputs [tokens, in], ``times`` as many as in `BATCHES`, and windows."""
    generator = torch.Generator().manual_seed(3)
    return [
        ((1 + step) * torch.randn(times * tokens, features, generator=generator).to(dtype), windows)
        for step, (windows, tokens) in enumerate(BATCHES)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_norm_of_several_batches_is_the_root_of_the_mean_over_all_windows(
    dtype: torch.dtype,
) -> None:
    norm = InputNorm(6, torch.device("cpu"))
    for inputs, windows in batches(6, dtype):
        norm.add(inputs, windows)
    every = torch.cat([inputs for inputs, _ in batches(6, dtype)]).double()
    expected = (every.square().sum(0) / sum(windows for windows, _ in BATCHES)).sqrt()
    assert norm.finite()
    found = norm.result()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("features", [6, 72, 1000])
def test_the_norm_is_a_running_mean_in_the_released_order_of_operations(features: int) -> None:
    """Bit for bit: then near-ties between Wanda's scores fall as they do there."""
    norm, mean, seen = InputNorm(features, torch.device("cpu")), torch.zeros(features), 0
    for inputs, windows in batches(features, times=40):
        norm.add(inputs, windows)
        for window in inputs.view(windows, -1, features):
            mean *= seen / (seen + 1)
            seen += 1
            mean += torch.norm(window.t(), p=2, dim=1) ** 2 / seen
    assert torch.equal(norm.result(), mean.sqrt())


def test_the_norm_of_tokens_that_an_expert_got_counts_their_windows() -> None:
    """Of 7 tokens from 2 windows, and of none, nobody knows which are from which."""
    norm = InputNorm(6, torch.device("cpu"))
    inputs = torch.randn(7, 6, generator=torch.Generator().manual_seed(0))
    norm.add(inputs, 2)
    norm.add(inputs[:0], 3)
    expected = (inputs.double().square().sum(0) / 5).sqrt()
    torch.testing.assert_close(norm.result().double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("features", [6, 200, 400])
def test_the_hessian_of_several_batches_is_that_of_all_tokens(features: int) -> None:
    hessian = Hessian(features, torch.device("cpu"))
    for inputs, windows in batches(features):
        hessian.add(inputs, windows)
    every = torch.cat([inputs for inputs, _ in batches(features)]).double()
    expected = 2 / sum(windows for windows, _ in BATCHES) * every.t() @ every
    found = hessian.result()
    assert torch.equal(found, found.t())
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("input_mean", lambda every: every.mean(0)),
        ("input_variance", lambda every: every.var(0, unbiased=False)),
        ("input_max", lambda every: every.abs().amax(0)),
    ],
)
@pytest.mark.parametrize("shift", [0, 1000])
def test_mean_variance_and_maximum_of_several_batches_are_those_of_all_tokens(
    name: str, expected, shift: int
) -> None:
    found = STATISTICS[name](6, torch.device("cpu"))
    for inputs, windows in batches(6):
        found.add(inputs + shift, windows)
    every = torch.cat([inputs + shift for inputs, _ in batches(6)]).double()
    result = found.result()
    assert (result.shape, result.dtype) == ((6,), torch.float32)
    torch.testing.assert_close(result.double(), expected(every), rtol=1e-3, atol=1e-6)


def test_a_wrong_name_has_a_suggestion_and_a_class_is_its_own_statistic() -> None:
    class Own(InputStatistic):
        name = "own"

        def add(self, inputs, windows) -> None: ...
        def result(self): ...

    assert input_statistics({Own, "hessian", "gradient"}) == {"hessian": Hessian, "own": Own}
    with pytest.raises(PrunebenchError, match="'input_norms', which does not exist") as raised:
        input_statistics({"input_norms"})
    assert raised.value.hint == "did you mean 'input_norm'?"
    with pytest.raises(PrunebenchError, match="expected a set of names"):
        input_statistics("input_norm")


@pytest.mark.parametrize("kind", STATISTICS.values())
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_one_value_that_is_not_finite_shows(kind: type[InputStatistic], bad: float) -> None:
    found = kind(6, torch.device("cpu"))
    for inputs, windows in batches(6):
        found.add(inputs, windows)
    assert found.finite()
    wrong = torch.ones(2, 6)
    wrong[1, 5] = bad
    found.add(wrong, 1)
    assert not found.finite()


@pytest.mark.parametrize("panel", [128, 512])
def test_bfloat16_inputs_give_a_float32_hessian_and_torchs_precision_is_restored(
    panel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunebench.layerwise.statistics.WIDE_PANEL", panel)
    before = torch.backends.mkldnn.matmul.fp32_precision
    inputs = torch.randn(300, 320, generator=torch.Generator().manual_seed(0)).bfloat16()
    hessian = Hessian(320, torch.device("cpu"))
    hessian.add(inputs, 2)
    exact = inputs.double().t() @ inputs.double()
    torch.testing.assert_close(hessian.result().double(), exact, rtol=1e-4, atol=1e-4)
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_squares_that_overflow_show() -> None:
    found = InputVariance(3, torch.device("cpu"))
    found.add(torch.tensor([[1e30, 0, 0], [-1e30, 0, 0]]), 1)
    assert bool(found.mean.isfinite().all())
    assert not found.finite()


def test_a_statistic_of_ones_own_is_taken_as_finite() -> None:
    class Own(InputStatistic):
        name = "own"

        def add(self, inputs, windows) -> None: ...
        def result(self): ...

    own = Own(3, torch.device("cpu"))
    assert own.finite()
    assert (own.features, own.device) == (3, torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_only_numbers_that_were_bfloat16_are_multiplied_as_such(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[bool] = []
    products = statistics._bfloat16_products
    monkeypatch.setattr(
        statistics, "_bfloat16_products", lambda: (used.append(True), products())[1]
    )
    Hessian(4, torch.device("cpu")).add(torch.ones(2, 4, dtype=dtype), 1)
    assert bool(used) == (dtype == torch.bfloat16)
