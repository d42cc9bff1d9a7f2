"""Greedy continuations: held against a loop that runs the whole sequence again for each token."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from prunebench.errors import PrunebenchError
from prunebench.measure.quality import greedy
from prunebench.measure.quality.greedy import end_tokens, greedy_choices, greedy_continuations
from prunebench.model.anatomy import Block
from prunebench.model.surgery import remove_blocks, remove_layers
from prunebench.testing import FAMILIES
from tiny import tiny_model, tiny_tokenizer

PROMPTS = torch.randint(2, 320, (3, 9), generator=torch.Generator().manual_seed(2))


def plain(model, prompt: torch.Tensor, new_tokens: int, end=()) -> list[int]:
    """No cache, no batch."""
    tokens = prompt[None]
    for _ in range(new_tokens):
        with torch.no_grad():
            best = model(tokens, use_cache=False).logits[0, -1].argmax()
        tokens = torch.cat([tokens, best[None, None]], dim=1)
        if int(best) in end:
            break
    return tokens[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_the_most_likely_tokens_one_after_the_other(family: str) -> None:
    model = tiny_model(family)
    found = greedy_continuations(model, PROMPTS, 12)
    assert [one.tolist() for one in found] == [plain(model, one, 12) for one in PROMPTS]


def test_a_model_that_lost_layers_and_blocks_writes_too() -> None:
    model = tiny_model("llama")
    remove_blocks(model, [Block(0, "attention"), Block(3, "mlp")])
    remove_layers(model, {1})
    found = greedy_continuations(model, PROMPTS, 12)
    assert [one.tolist() for one in found] == [plain(model, one, 12) for one in PROMPTS]


def test_an_end_token_is_the_last_and_others_of_the_batch_go_on() -> None:
    model = tiny_model("llama")
    every = [plain(model, one, 12) for one in PROMPTS]
    end = every[0][4]
    expected = [plain(model, one, 12, {end}) for one in PROMPTS]
    found = [one.tolist() for one in greedy_continuations(model, PROMPTS, 12, {end})]
    assert found == expected
    assert len(found[0]) <= 5 < max(map(len, found))


def test_a_batch_that_has_ended_is_not_run_on(monkeypatch) -> None:
    model = tiny_model("llama")
    first = {plain(model, one, 1)[0] for one in PROMPTS}
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    found = greedy_continuations(model, PROMPTS, 12, first)
    assert [len(one) for one in found] == [1, 1, 1]
    assert len(passes) == 1


def test_a_text_ends_when_its_tokens_are_enough() -> None:
    model = tiny_model("llama")
    every = [plain(model, one, 12) for one in PROMPTS]
    seen = []

    def enough(tokens: list[int]) -> bool:
        seen.append(list(tokens))
        return tokens in (every[0][:3], every[1][:5])

    found = greedy_continuations(model, PROMPTS[:2], 12, until=enough)
    assert [one.tolist() for one in found] == [every[0][:3], every[1][:5]]
    # Nothing is asked about a text that has ended.
    assert sorted(seen) == sorted(
        [every[0][:count] for count in (1, 2, 3)] + [every[1][:count] for count in range(1, 6)]
    )


def test_more_tokens_than_learned_positions_are_refused() -> None:
    with pytest.raises(PrunebenchError, match="takes 129 tokens, but the model has positions"):
        greedy_continuations(tiny_model("opt"), PROMPTS, 120)


@pytest.mark.parametrize("family", FAMILIES)
def test_choices_are_what_is_written_as_long_as_a_text_is_followed(family: str) -> None:
    model = tiny_model(family)
    written = [plain(model, one, 6) for one in PROMPTS]
    # Prompts and texts of several lengths, of which two leave what the model writes.
    prompts = [PROMPTS[0].tolist(), [*PROMPTS[1].tolist(), written[1][0]], PROMPTS[2].tolist()]
    texts = [written[0][:5], [*written[1][1:3], 7, 8], []]
    found = greedy_choices(model, prompts, texts)
    assert found[0] == written[0]
    assert found[1] == [
        plain(model, torch.tensor(prompts[1] + texts[1][:count]), 1)[0] for count in range(5)
    ]
    assert found[2] == written[2][:1]


@pytest.mark.parametrize("tokens", [1, 30, 1000])
def test_choices_do_not_depend_on_the_batch(tokens: int, monkeypatch) -> None:
    model = tiny_model("llama")
    prompts, texts = PROMPTS.tolist(), [[5, 6], [7], [8, 9, 10]]
    expected = [greedy_choices(model, [a], [b])[0] for a, b in zip(prompts, texts, strict=True)]
    monkeypatch.setattr(greedy, "tokens_per_batch", lambda _: tokens)
    seen = []
    model.model.register_forward_hook(lambda _, __, out: seen.append(len(out[0])))
    assert greedy_choices(model, prompts, texts) == expected
    assert seen[1:] == {1: [1, 1, 1], 30: [2, 1], 1000: [3]}[tokens]
    monkeypatch.setattr(greedy, "split_model", lambda *_: (None, None))
    assert greedy_choices(model, prompts, texts) == expected
    assert greedy_choices(model, [], []) == []


def test_choices_beyond_the_positions_are_refused() -> None:
    with pytest.raises(PrunebenchError, match="takes 129 tokens, but the model has positions"):
        greedy_choices(tiny_model("opt"), PROMPTS[:1].tolist(), [[5] * 120])


def test_end_tokens_are_those_of_tokenizer_and_checkpoint() -> None:
    model = tiny_model("llama")
    assert end_tokens(model, tiny_tokenizer()) == {1}
    model.generation_config.eos_token_id = [5, 6]
    assert end_tokens(model, SimpleNamespace(eos_token_id=7)) == {1, 5, 6, 7}
    bare = SimpleNamespace(config=SimpleNamespace(eos_token_id=None))
    assert end_tokens(bare, SimpleNamespace()) == set()
