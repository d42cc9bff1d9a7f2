from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM

from evaluation import SPEC, windows_of
from live_logits import LiveLogits
from prunebench.errors import PrunebenchError
from prunebench.measure.quality import perplexity as module
from prunebench.measure.quality import split_model
from prunebench.measure.quality.perplexity import log_sum_exp, perplexity
from tiny import FAMILIES, VOCABULARY, tiny_model

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


def tokens(windows=5, length=24):
    return torch.randint(
        0, VOCABULARY, (windows, length), generator=torch.Generator().manual_seed(3)
    )


def independent(model, windows):
    """Mean NLL of each window by transformers' own loss."""
    with torch.no_grad():
        return [float(model(window[None], labels=window[None]).loss.double()) for window in windows]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_windows", [None, 1, 2])
def test_it_is_transformers_own_loss(family, batch_windows, monkeypatch):
    # Slices that end inside a window.
    monkeypatch.setattr(split_model, "LOGITS_BYTES", 7 * 4 * VOCABULARY)
    model = tiny_model(family)
    found = perplexity(model, windows_of(tokens()), SPEC, batch_windows=batch_windows)
    losses = independent(model, tokens())
    nll = sum(losses) / len(losses)
    assert found.nll == pytest.approx(nll, rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(nll), rel=1e-6)
    stderr = torch.tensor(losses).double().std().item() / math.sqrt(len(losses))
    assert found.nll_stderr == pytest.approx(stderr, rel=1e-3)
    assert (found.windows, found.window, found.stride, found.tokens_scored) == (5, 24, 24, 5 * 23)
    assert found.protocol == "sparsegpt"


@pytest.mark.parametrize("kind", ["softcapped logits", "scaled logits"])
def test_work_behind_the_head_is_not_lost(kind):
    torch.manual_seed(0)
    if kind == "softcapped logits":
        config = Gemma2Config(
            **SIZES, head_dim=12, final_logit_softcapping=2.0, attn_implementation="eager"
        )
        model = Gemma2ForCausalLM(config).eval()
    else:
        model = GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=7.0)).eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3)
    losses = independent(model, tokens())
    assert perplexity(model, windows_of(tokens()), SPEC).nll == pytest.approx(
        sum(losses) / len(losses), rel=1e-6
    )


def test_half_precision_logits_are_taken_to_float32():
    model = tiny_model("llama").bfloat16()
    losses = independent(model, tokens())
    assert perplexity(model, windows_of(tokens()), SPEC).nll == pytest.approx(
        sum(losses) / len(losses), rel=1e-5
    )


def test_a_uniform_model_has_the_vocabularys_perplexity():
    model = tiny_model("llama")
    model.lm_head.weight.zero_()
    assert perplexity(model, windows_of(tokens()), SPEC).perplexity == pytest.approx(
        VOCABULARY, rel=1e-6
    )


def test_one_window_has_no_standard_error():
    assert perplexity(tiny_model("opt"), windows_of(tokens(1)), SPEC).nll_stderr is None


def test_progress_counts_windows():
    seen = []
    perplexity(
        tiny_model("llama"),
        windows_of(tokens(5)),
        SPEC,
        batch_windows=2,
        progress=lambda *at: seen.append(at),
    )
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_the_window_that_overflows_is_named():
    model = tiny_model("llama", tie_word_embeddings=False)
    windows = tokens(4)
    windows[windows == 7] = 8
    windows[2, 5] = 7
    model.model.embed_tokens.weight[7] = float("nan")
    with pytest.raises(PrunebenchError, match="window 2 is not finite") as caught:
        perplexity(model, windows_of(windows), SPEC, batch_windows=2)
    assert caught.value.hint


def test_a_likelihood_beyond_all_perplexities_is_a_clear_error():
    model = tiny_model("llama", tie_word_embeddings=False)
    model.lm_head.weight.mul_(1e5)
    with pytest.raises(PrunebenchError, match="nats per token"):
        perplexity(model, windows_of(tokens()), SPEC)


def test_more_tokens_than_learned_positions_are_refused_and_rotary_ones_are_not():
    with pytest.raises(PrunebenchError, match="positions for 128"):
        perplexity(tiny_model("opt"), windows_of(tokens(1, 160)), SPEC)
    assert perplexity(tiny_model("llama"), windows_of(tokens(1, 160)), SPEC).tokens_scored == 159


@pytest.mark.parametrize("shape", [(3,), (0, 8), (3, 1)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="windows"):
        perplexity(tiny_model("llama"), windows_of(torch.zeros(shape, dtype=torch.int64)), SPEC)


def test_every_window_keeps_its_own_likelihood():
    found = perplexity(tiny_model("llama"), windows_of(tokens(), tail=tokens(1, 20)), SPEC)
    assert len(found.window_nll) == found.windows
    assert sum(found.window_tokens) == found.tokens_scored
    assert sum(found.window_nll) / found.tokens_scored == pytest.approx(found.nll)


def test_the_model_is_left_as_it_was():
    model = tiny_model("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    perplexity(model, windows_of(tokens()), SPEC)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(part._forward_hooks for part in model.modules())


@pytest.mark.parametrize(("rows", "parts"), [(7, [7] * 16 + [3]), (100, [58, 57]), (0, [1] * 115)])
def test_the_head_runs_on_as_many_tokens_as_are_allowed_at_once(rows, parts, monkeypatch):
    monkeypatch.setattr(split_model, "LOGITS_BYTES", rows * 4 * VOCABULARY + 3)
    model = tiny_model("llama")
    seen = []
    model.lm_head.register_forward_hook(lambda _, given, out: seen.append(given[0].shape[:-1]))
    perplexity(model, windows_of(tokens()), SPEC, batch_windows=5)
    assert seen[0].numel() <= module.PROBE_TOKENS  # to find out whether this can be done
    assert [shape.numel() for shape in seen[1:]] == parts


@pytest.mark.parametrize(("tail", "fits"), [(1, False), (2, True), (23, True), (24, False)])
def test_a_tail_is_one_shorter_window(tail, fits):
    windows = windows_of(tokens(2), tokens(1, tail))
    if fits:
        assert perplexity(tiny_model("llama"), windows, SPEC).tokens_scored == 2 * 23 + tail - 1
    else:
        with pytest.raises(ValueError, match="the tail is"):
            perplexity(tiny_model("llama"), windows, SPEC)
    with pytest.raises(ValueError, match="the tail is"):
        perplexity(tiny_model("llama"), windows_of(tokens(2), tokens(2, 5)), SPEC)


def test_dropout_is_switched_off():
    model = tiny_model("opt", dropout=0.5)
    usual = perplexity(model, windows_of(tokens()), SPEC).nll
    model.train()
    assert perplexity(model, windows_of(tokens()), SPEC).nll == usual


LEVELS = st.sampled_from([-3e38, -1e4, -104.0, -87.0, -60.0, -45.0, 0.0, 60.0, 87.0, 89.0, 1e4])
"""Logits at which exponentials overflow, vanish, lose digits, and none of it."""


@given(
    st.lists(st.tuples(LEVELS, LEVELS), min_size=1, max_size=6),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 1000),
)
def test_logits_of_any_size_have_a_log_sum_exp(levels, dtype, seed):
    noise = torch.randn(len(levels), 40, generator=torch.Generator().manual_seed(seed))
    logits = noise + torch.tensor(levels).repeat_interleave(20, dim=1)  # two levels in each row
    logits[:, ::3] = -math.inf
    logits = logits.to(dtype)
    exact = torch.logsumexp(logits.double(), 1).tolist()
    # A few rows at a time: some rows share their slice with others that need more care.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CACHE_BYTES", 2 * 4 * 40)
        assert log_sum_exp(logits).tolist() == pytest.approx(exact, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_logit_that_is_not_finite_spoils_only_its_own_row(value):
    logits = torch.zeros(3, 8)
    logits[1, 5] = value
    found = log_sum_exp(torch.cat([logits, torch.full((1, 8), -math.inf)]))
    assert torch.isfinite(found).tolist() == [True, False, True, False]
    assert found[0] == pytest.approx(math.log(8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_logits_are_in_memory_at_once(dtype, monkeypatch):
    """At most those of a slice, as the head gives them, and two float32 rows for each core."""
    monkeypatch.setattr(split_model, "LOGITS_BYTES", 10 * 4 * VOCABULARY)
    monkeypatch.setattr(module, "CACHE_BYTES", 4 * VOCABULARY)
    tokens = torch.randint(2, VOCABULARY, (4, 24))
    with LiveLogits(VOCABULARY) as live:
        perplexity(tiny_model("llama").to(dtype), windows_of(tokens), SPEC)
    beside_the_slice = live.peak - 10 * dtype.itemsize * VOCABULARY
    assert 0 <= beside_the_slice <= torch.get_num_threads() * 2 * 4 * VOCABULARY
