"""Log-likelihoods from trees are those of lm-eval's own wrapper, text by text."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from lm_eval.models.huggingface import HFLM

from prunebench.measure.quality import tree_scoring
from prunebench.measure.quality.split_model import split_model
from prunebench.measure.quality.tree_scoring import TreeScoringLM
from prunebench.testing.models import FAMILIES
from tiny import tiny_model, tiny_tokenizer

LONGEST = 60


def requests() -> list[tuple[tuple[str, str], list[int], list[int]]]:
    """Questions with shared examples, choices of one and more tokens, repeats, and a long text."""
    draw = torch.Generator().manual_seed(0)

    def some(count: int) -> list[int]:
        return torch.randint(3, 320, (count,), generator=draw).tolist()

    examples = some(20)
    found = []
    for question in range(6):
        text = (examples if question < 4 else []) + some(9)
        found += [(text, some(1 + choice)) for choice in range(3)]
    found += [found[0], (found[1][0] + found[1][1][:1], some(2))]
    found.append((some(70), some(3)))  # longer than the model takes: its begin is cut off
    return [((str(n), ""), text, choice) for n, (text, choice) in enumerate(found)]


def wrapped(kind, model, batch_size: int = 4):
    return kind(
        pretrained=model,
        tokenizer=tiny_tokenizer(),
        backend="causal",
        batch_size=batch_size,
        max_length=LONGEST,
    )


def answers(lm) -> list[tuple[float, bool]]:
    found: list[tuple[float, bool]] = lm._loglikelihood_tokens(requests(), disable_tqdm=True)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_the_likelihoods_are_those_of_lm_eval(family: str) -> None:
    windows = {"sliding_window": None} if family in ("mistral", "qwen2") else {}
    model = tiny_model(family, max_position_embeddings=128, **windows)
    ours, theirs = wrapped(TreeScoringLM, model), wrapped(HFLM, model)
    found, expected = answers(ours), answers(theirs)
    assert ours.one_by_one is None
    assert [one for one, _ in found] == pytest.approx([one for one, _ in expected], rel=1e-5)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def greedy_choice(model, context: list[int], length: int) -> list[int]:
    for _ in range(length):
        with torch.no_grad():
            context = [*context, int(model(torch.tensor([context])).logits[0, -1].argmax())]
    return context[-length:]


def test_a_choice_that_the_model_would_write_is_told_from_one_that_begins_like_it() -> None:
    model = tiny_model("llama")
    written = greedy_choice(model, [5, 6, 7], 3)
    other = [*written[:2], (written[2] + 1) % 320]
    asked = [(("", ""), [5, 6, 7], choice) for choice in (written, other, written[:1])]
    found = wrapped(TreeScoringLM, model)._loglikelihood_tokens(asked, disable_tqdm=True)
    assert [greedy for _, greedy in found] == [True, False, True]


def test_tokens_in_common_are_computed_once() -> None:
    model = tiny_model("llama")
    seen: list[int] = []
    model.model.register_forward_hook(lambda _, __, out: seen.append(out[0].shape[:2].numel()))
    texts = [[9] * 30 + [question] * 4 for question in range(10, 14)]
    asked = [(("", ""), text, [choice] * 3) for text in texts for choice in (20, 21)]
    wrapped(TreeScoringLM, model)._loglikelihood_tokens(asked, disable_tqdm=True)
    # All questions share 30 tokens, two choices 4, and of a choice all but the last are read.
    assert seen[2:] == [30 + 4 * 4 + 8 * 2]
    assert sum(seen[:2]) <= 2 * 12 + 18  # to find out whether this can be done


def test_answers_are_reported_once_and_as_they_come() -> None:
    seen: list[str] = []
    lm = wrapped(TreeScoringLM, tiny_model("llama"), batch_size=1)
    hook = SimpleNamespace(add_partial=lambda _, request, __: seen.append(request[0]))
    lm.set_cache_hook(hook)
    answers(lm)
    assert sorted(seen, key=int) == [str(number) for number in range(len(requests()))]


def test_a_model_whose_logits_change_after_the_head_scores_trees_too() -> None:
    model = tiny_model("llama")
    inner = model.forward

    def forward(*given, logits_to_keep=0, **named):
        out = inner(*given, logits_to_keep=logits_to_keep, **named)
        out.logits = 3 * torch.tanh(out.logits)
        return out

    model.forward = forward
    assert split_model(model, torch.tensor([[1, 2, 3]]))[0] is None
    ours, theirs = wrapped(TreeScoringLM, model), wrapped(HFLM, model)
    found, expected = answers(ours), answers(theirs)
    assert ours.one_by_one is None
    assert [one for one, _ in found] == pytest.approx([one for one, _ in expected], rel=1e-5)


def blind(model):
    """The model without its masks: every token sees those before it, whatever it is told."""
    inner = model.model.forward

    def forward(*given, attention_mask=None, **named):
        del attention_mask
        return inner(*given, **named)

    model.model.forward = forward
    return model


def without_positions(model):
    inner = model.model.forward

    def forward(*given, position_ids=None, **named):
        if position_ids is not None:
            raise TypeError("unexpected keyword argument 'position_ids'")
        return inner(*given, **named)

    model.model.forward = forward
    return model


def all_or_none(model):
    inner = model.forward

    def forward(input_ids, use_cache=None):
        out = inner(input_ids, use_cache=use_cache)
        out.logits = out.logits * 2
        return out

    model.forward = forward
    return model


@pytest.mark.parametrize(
    ("change", "config", "reason"),
    [
        (blind, {}, "logits change by up to"),
        (without_positions, {}, "takes no mask of its own"),
        (all_or_none, {}, "computes all logits or none"),
        (lambda model: model, {"sliding_window": 20}, "looks 20 tokens back, and a text has 60"),
    ],
)
def test_a_model_that_cannot_is_scored_as_lm_eval_does_and_the_reason_is_kept(
    change, config, reason
) -> None:
    family = "mistral" if config else "llama"
    ours = wrapped(TreeScoringLM, change(tiny_model(family, **config)))
    theirs = wrapped(HFLM, change(tiny_model(family, **config)))
    assert answers(ours) == answers(theirs)
    assert reason in ours.one_by_one


def test_a_model_is_probed_once_for_all_tasks_and_every_task_has_its_own_reason() -> None:
    model = tiny_model("llama")
    passes: list[int] = []
    model.model.register_forward_hook(lambda *_: passes.append(1))
    lm = wrapped(TreeScoringLM, model)
    asked = [(("", ""), [9] * 30, [choice] * 2) for choice in (20, 21)]
    counts, reasons = [], []
    for task in (asked, [(("", ""), [5], [6])], asked):
        passes.clear()
        lm.start(batch_size=4)
        assert lm.one_by_one is None
        lm._loglikelihood_tokens(task, disable_tqdm=True)
        counts.append(len(passes))
        reasons.append(lm.one_by_one)
    assert counts[0] > counts[2] == 1
    assert reasons == [None, "the texts are too short to gain by it", None]


def test_a_batch_has_at_most_batch_size_rows(monkeypatch) -> None:
    rows: list[int] = []
    inner = TreeScoringLM._answers
    monkeypatch.setattr(
        TreeScoringLM,
        "_answers",
        lambda lm, batch, asked: rows.append(len(batch)) or inner(lm, batch, asked),
    )
    asked = [(("", ""), [number] * 20, [7]) for number in range(10, 17)]
    for size in (1, 3):
        lm = wrapped(TreeScoringLM, tiny_model("llama"))
        lm.start(batch_size=size)
        lm._loglikelihood_tokens(asked, disable_tqdm=True)
        assert max(rows) == size
        rows.clear()


def test_short_texts_are_scored_as_lm_eval_does() -> None:
    lm = wrapped(TreeScoringLM, tiny_model("llama"))
    asked = [(("", ""), [5], [6])]
    found = lm._loglikelihood_tokens(asked, disable_tqdm=True)
    assert found == wrapped(HFLM, tiny_model("llama"))._loglikelihood_tokens(asked, True)
    assert "too short" in lm.one_by_one
    assert lm._loglikelihood_tokens([], disable_tqdm=True) == []


def test_the_reason_of_a_model_without_memory_is_not_swallowed(monkeypatch) -> None:
    lm = wrapped(TreeScoringLM, tiny_model("llama"))

    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(tree_scoring.TreeScoringLM, "_logits", full)
    with pytest.raises(torch.OutOfMemoryError):
        answers(lm)
