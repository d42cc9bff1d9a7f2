"""The steps of `lean` that compute something in fewer kernels than the modules do."""

from __future__ import annotations

import pytest
import torch
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from decoding import generated, tokens_of
from prunebench.measure.speed.lean_decoder import Lean, RMSNorm, most_likely
from tiny import tiny_model

SIZE = 48
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def drawn(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5)).to(dtype)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("epsilon", [1e-6, 0.5])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_a_norm_of_one_row_and_of_several_is_that_of_the_module(rows, epsilon, dtype):
    module = LlamaRMSNorm(SIZE, eps=epsilon).to(dtype)
    module.weight.data.copy_(drawn(SIZE, dtype=dtype) + 2)
    inputs = 3 * drawn(1, rows, SIZE, dtype=dtype)
    found = RMSNorm(module.weight.data, epsilon, SIZE)(inputs)
    # Both compute in float32, the module by the root of a mean, and round to the dtype twice.
    units = max(4 * torch.finfo(torch.float32).eps, torch.finfo(dtype).eps)
    torch.testing.assert_close(found, module(inputs), rtol=units, atol=0)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_norm_without_weight_has_a_gain(rows, dtype):
    inputs = drawn(1, rows, SIZE, dtype=dtype)
    found = RMSNorm(None, 0.25, SIZE, 1.5)(inputs)
    exact = inputs.double()
    expected = 1.5 * exact / (exact.pow(2).mean(-1, keepdim=True) + 0.25).sqrt()
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_norm_of_a_row_of_zeros_is_zero(dtype):
    norm = RMSNorm(torch.ones(SIZE, dtype=dtype), 1e-6, SIZE)
    assert not norm(torch.zeros(1, 1, SIZE, dtype=dtype)).any()


def test_a_row_whose_squares_overflow_half_precision_keeps_its_norm():
    """The norm is summed in float32: 600 x 600 is more than a float16 holds."""
    inputs = torch.full((1, 1, SIZE), 600.0, dtype=torch.float16)
    found = RMSNorm(torch.ones(SIZE, dtype=torch.float16), 1e-6, SIZE)(inputs)
    assert torch.equal(found, torch.ones_like(inputs))


def test_the_most_likely_token_is_the_first_of_several():
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.0], [3.0, 3.0, 3.0, 3.0]])
    assert most_likely(logits).tolist() == [[1], [0]]


@pytest.mark.parametrize("name", ["silu", "gelu", "relu"])
def test_the_activation_is_the_one_of_the_model(name):
    model = tiny_model("llama", hidden_act=name).eval()
    assert type(model.model.layers[0].mlp.act_fn) is type(ACT2FN[name])
    ids = torch.randint(0, 320, (1, 7), generator=torch.Generator().manual_seed(3))
    expected = generated(model, ids, 10)[:, 7:]
    assert torch.equal(tokens_of(Lean(model, 1, 17), ids, 10), expected)


def test_an_activation_with_a_hook_is_called():
    model = tiny_model("llama").eval()
    called = []
    activation = model.model.layers[0].mlp.act_fn
    activation.register_forward_hook(lambda *_: called.append(1))
    lean = Lean(model, 1, 17)
    first = lean.prompt(torch.ones(1, 7, dtype=torch.long))
    called.clear()
    lean.step(first)
    assert called
