"""KL divergence from dense, compared with a few lines in double precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunebench.errors import PrunebenchError
from prunebench.plugin.api.metric import MetricContext
from prunebench.plugin.host import load_plugins
from prunebench.testing import MetricContract
from prunebench_plugins.kl_divergence import divergence
from tiny import tiny_model, tiny_tokenizer

KL = load_plugins()["metric"]["kl-divergence"].value
TOKENS = torch.randint(2, 320, (3, 20), generator=torch.Generator().manual_seed(1))


class TestKL(MetricContract):
    metric, families = KL, ("llama", "opt")


def measure(model, dense, **options):
    context = MetricContext(TOKENS, seed=0, load_dense=lambda: dense)
    with torch.no_grad():
        return KL(KL.Options(**options)).measure(model, tiny_tokenizer(), context)


def pruned():
    model = tiny_model("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[parameter.abs() < 0.05] = 0
    return model


def test_the_dense_model_has_divergence_zero_and_full_agreement() -> None:
    assert measure(tiny_model("llama"), tiny_model("llama")) == {
        "kl-divergence": 0.0,
        "top1-agreement": 1.0,
    }


@pytest.mark.parametrize("chunk", [1, 7, 256])
def test_it_is_the_mean_over_tokens_of_the_definition(chunk: int) -> None:
    dense, model = tiny_model("llama"), pruned()
    with torch.no_grad():
        logits = [one(TOKENS).logits.double().numpy().reshape(-1, 320) for one in (dense, model)]
    p, q = (np.exp(rows) / np.exp(rows).sum(1, keepdims=True) for rows in logits)
    found = measure(model, dense, chunk=chunk)
    assert found["kl-divergence"] == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-4)
    assert found["kl-divergence"] > 0.01
    assert found["top1-agreement"] == pytest.approx((p.argmax(1) == q.argmax(1)).mean())
    assert 0 < found["top1-agreement"] < 1


rows = st.lists(st.floats(-30, 30, width=32), min_size=4, max_size=4)


@settings(max_examples=100)
@given(rows, rows, st.floats(-5, 5, width=32))
def test_it_is_never_negative_and_a_constant_added_to_logits_changes_nothing(
    p, q, constant
) -> None:
    theirs, ours = torch.tensor([p]), torch.tensor([q])
    value = float(divergence(theirs, ours))
    assert value >= -1e-5
    assert float(divergence(theirs, ours + constant)) == pytest.approx(value, abs=1e-3)


def test_a_token_impossible_in_dense_counts_nothing_and_in_pruned_makes_it_infinite() -> None:
    masked = torch.tensor([[0.0, 0.0, -math.inf]])
    even = torch.zeros(1, 3)
    assert float(divergence(masked, even)) == pytest.approx(math.log(1.5))
    assert float(divergence(masked, masked)) == 0
    assert float(divergence(even, masked)) == math.inf


def test_another_vocabulary_is_refused() -> None:
    with pytest.raises(PrunebenchError, match="knows 320 tokens and the pruned one 330"):
        measure(tiny_model("llama", vocab_size=330), tiny_model("llama"))


def test_any_shape_before_the_vocabulary_is_taken() -> None:
    p, q = (torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    found = divergence(p, q)
    assert found.shape == (2, 3)
    assert torch.equal(divergence(p[1], q[1]), found[1])
    assert torch.equal(divergence(p[1, 2], q[1, 2]), found[1, 2])
