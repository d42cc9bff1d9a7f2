"""Draft acceptance: held against a plain speculative loop of two models, token by token."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunebench.errors import PrunebenchError
from prunebench.plugin.api.metric import MetricContext
from prunebench.testing import MetricContract
from prunebench_plugins.draft_acceptance import (
    LONGEST_DRAFT,
    DraftAcceptance,
    accepted_by_step,
    agreement,
    expected_speedup,
)
from tiny import tiny_model, tiny_tokenizer

TOKENS = torch.randint(2, 320, (5, 20), generator=torch.Generator().manual_seed(1))
NEW = 24


class TestDraftAcceptance(MetricContract):
    metric, families = DraftAcceptance, ("llama", "gpt_neox")


def measure(model, dense, tokens=TOKENS, end=(), **options):
    context = MetricContext(tokens, seed=0, load_dense=lambda: dense, end_tokens=end)
    given = {"new_tokens": NEW, "prompt": 12, **options}
    with torch.no_grad():
        return DraftAcceptance(DraftAcceptance.Options(**given)).measure(
            model, tiny_tokenizer(), context
        )


def draft_of(strength: float):
    """A model that sometimes agrees: the dense one with noise on its weights."""
    model = tiny_model("llama")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter += strength * parameter.std() * noise
    return model


def best(model, tokens: list[int]) -> int:
    """The most likely next token; the whole sequence again, without a cache."""
    return next_token(model, tuple(tokens))


@cache  # loops with other lengths of drafts write the same texts
def next_token(model, tokens: tuple[int, ...]) -> int:
    with torch.no_grad():
        return int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax())


def speculative_loop(draft, dense, prompt: list[int], k: int, new_tokens: int, end=()):
    """Greedy speculative decoding as it is described: returns its text and the accepted counts."""
    text, accepted = list(prompt), []
    while len(text) - len(prompt) < new_tokens and not (accepted and text[-1] in end):
        proposed: list[int] = []
        while len(proposed) < k and not (proposed and proposed[-1] in end):
            proposed.append(best(draft, text + proposed))
        # One pass of the dense model over the proposal; here one for each token.
        agreed = 0
        while agreed < len(proposed) and best(dense, text + proposed[:agreed]) == proposed[agreed]:
            agreed += 1
        text += proposed[:agreed]
        accepted.append(agreed)
        if not (agreed and text[-1] in end):
            text.append(best(dense, text))
    return text[len(prompt) :], accepted


@pytest.mark.parametrize("ends", [False, True], ids=["open", "with ends"])
@pytest.mark.parametrize("strength", [0.05, 0.4])
def test_the_counts_are_those_of_a_loop_of_two_models(strength: float, ends: bool) -> None:
    dense = tiny_model("llama")
    draft = draft_of(strength)
    end = set()
    if ends:  # tokens that do occur
        written = [speculative_loop(draft, dense, row[:12].tolist(), 1, NEW)[0] for row in TOKENS]
        end = {written[0][5], written[1][11], written[2][0]}
    found = measure(draft, dense, end=end)
    for k in range(1, LONGEST_DRAFT + 1):
        steps = [
            one
            for row in TOKENS
            for one in speculative_loop(draft, dense, row[:12].tolist(), k, NEW, end)[1]
        ]
        assert found[f"accepted-{k}"] == pytest.approx(sum(steps) / len(steps), abs=1e-12), k
    assert 0 < found["draft-acceptance"] < 1
    assert 0 < found["accepted-8"] < 8


def test_the_loop_writes_what_the_dense_model_writes_alone() -> None:
    dense = tiny_model("llama")
    text, _ = speculative_loop(draft_of(0.4), dense, TOKENS[0].tolist(), 4, NEW)
    alone = TOKENS[0].tolist()
    for _ in text:
        alone.append(best(dense, alone))
    assert text == alone[20:]


def test_dense_accepts_all_of_itself() -> None:
    expected = {"draft-acceptance": 1.0} | {f"accepted-{k}": float(k) for k in range(1, 9)}
    assert measure(tiny_model("llama"), tiny_model("llama")) == expected


def test_batches_and_windows_shorter_than_the_prompt_change_nothing() -> None:
    dense = tiny_model("llama")
    draft = draft_of(0.3)
    whole = measure(draft, dense, prompt=20)
    assert measure(draft, dense, prompt=64, batch_size=2) == whole
    assert measure(draft, dense, prompt=12) != whole


def test_agreement_is_the_rank_of_each_token_after_those_before_it() -> None:
    model = tiny_model("llama")
    context = MetricContext(None, seed=0, load_dense=lambda: None)
    prompt = TOKENS[0].tolist()
    right, after = best(model, prompt), best(model, [*prompt, 5])
    found = agreement(model, context, [prompt, prompt], [[right], [5, after, 5]])
    assert found == [[True], [right == 5, True, False]]


@settings(max_examples=200)
@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 8))
def test_steps_cover_every_token_once(same: list[bool], k: int) -> None:
    steps = accepted_by_step(same, k, len(same))
    assert all(0 <= one <= k for one in steps)
    starts = [sum(one + 1 for one in steps[:number]) for number in range(len(steps))]
    assert all(all(same[at : at + one]) for at, one in zip(starts, steps, strict=True))
    for at, one in zip(starts, steps, strict=True):
        assert one == k or at + one >= len(same) or not same[at + one]
    assert starts[-1] < len(same) <= starts[-1] + steps[-1] + 1


def test_a_step_that_begins_before_the_last_token_is_counted_whole() -> None:
    assert accepted_by_step([True] * 11, 4, new_tokens=8) == [4, 4]
    assert accepted_by_step([True] * 11, 4, new_tokens=5) == [4]
    assert accepted_by_step([True, False, True, True, True, True], 2, new_tokens=4) == [1, 2]


def test_the_speedup_is_theorem_3_8_of_the_paper() -> None:
    # Table 1 of arXiv:2211.17192: alpha 0.8 and gamma 5 give 3.69 times the speed if c is 0.
    alpha, gamma = 0.8, 5
    per_step = (1 - alpha ** (gamma + 1)) / (1 - alpha)  # equation 1
    assert expected_speedup(per_step - 1, gamma, cost=0.0) == pytest.approx(3.69, abs=5e-3)
    assert expected_speedup(per_step - 1, gamma, cost=0.1) == pytest.approx(per_step / 1.5)
    assert expected_speedup(0.0, 1, cost=1.0) == 0.5


def test_another_vocabulary_is_refused() -> None:
    dense = tiny_model("llama", vocab_size=640)
    with torch.no_grad():
        dense.model.embed_tokens.weight[400:] *= 100  # so that it writes what the draft cannot
    with pytest.raises(PrunebenchError, match="the pruned one, with 320, does not have"):
        measure(tiny_model("llama"), dense)


def test_learned_positions_are_checked() -> None:
    with pytest.raises(PrunebenchError, match="takes 151 tokens, but the model has positions"):
        measure(tiny_model("opt"), tiny_model("opt"), new_tokens=132)


def test_the_rate_is_over_the_new_tokens_and_not_over_those_of_the_last_draft() -> None:
    dense, draft = tiny_model("llama"), draft_of(0.4)
    same = []
    for row in TOKENS:
        text = row[:12].tolist()
        for _ in range(NEW):
            same.append(best(draft, text) == best(dense, text))
            text.append(best(dense, text))
    found = measure(draft, dense)["draft-acceptance"]
    assert found == pytest.approx(sum(same) / len(same), abs=1e-12)
