from __future__ import annotations

import itertools
import random
import re
from types import SimpleNamespace

import pytest
import torch

from prunebench.plugin.api.metric import MetricContext
from prunebench_plugins.arithmetic_copy import (
    WORDS,
    ArithmeticAndCopy,
    _decided,
    _with_examples,
    first_line,
)
from small_tokenizers import gpt2_like
from tiny import tiny_model


class Pupil(torch.nn.Module):
    """A model that answers as ``reply`` says: text in, text out, one token after the other."""

    def __init__(self, tokenizer, reply) -> None:
        super().__init__()
        self.tokenizer, self.reply = tokenizer, reply
        self.embedding = torch.nn.Embedding(len(tokenizer), 2)
        self.config = SimpleNamespace(eos_token_id=None, max_position_embeddings=4096)
        self.batches = []  # questions of each pass
        self.decoded = []  # prompts that were answered token by token
        self.steps = []  # tokens of each of these answers

    def get_input_embeddings(self):
        return self.embedding


def measured(reply, seen=None, **options):
    """The figures of a model that writes ``reply(prompt)`` behind each prompt."""
    tokenizer = gpt2_like()
    model = Pupil(tokenizer, reply)
    metric = ArithmeticAndCopy(ArithmeticAndCopy.Options(questions=12, **options))
    context = MetricContext(tokens=None, seed=0, load_dense=lambda: None)
    if seen is not None:
        context.progress = lambda done, total: seen.append((done, total))

    def written(prompt):
        return tokenizer(reply(tokenizer.decode(prompt)))["input_ids"]

    def chosen(_model, prompts, continuations):
        model.batches.append(len(prompts))
        for prompt, continuation in zip(prompts, continuations, strict=True):
            # After a text that it would not write, the pupil writes anything.
            own = [*written(prompt), *[0] * (len(continuation) + 1)]
            yield own[: len(continuation) + 1]

    def continued(_model, prompts, new_tokens, until):
        model.decoded += [tokenizer.decode(one.tolist()) for one in prompts]
        answers = []
        for prompt in prompts:
            answer = written(prompt.tolist())[:new_tokens]
            enough = (n for n in range(1, len(answer) + 1) if until(answer[:n]))
            answers.append(answer[: next(enough, None)])
        model.steps += map(len, answers)
        return [torch.tensor(answer) for answer in answers]

    context.greedy_choices = lambda *given: list(chosen(*given))
    context.greedy_continuations = continued
    return metric.measure(model, tokenizer, context), model


def right(prompt):
    last = prompt.strip().splitlines()[-2]
    if found := re.fullmatch(r"Question: (\d+) \+ (\d+)", last):
        return f" {int(found[1]) + int(found[2])}\n\nQuestion: 1 + 1"
    return last.removeprefix("Words:") + "\n\nWords: more"


def test_right_answers_score_one_whatever_is_written_after_them():
    figures, _ = measured(right, new_tokens=200)
    assert figures == {"arithmetic-and-copy": 1, "arithmetic": 1, "copy": 1}


def test_each_kind_has_a_score_of_its_own_and_the_figure_is_their_mean():
    def copies_only(prompt):
        return right(prompt) if "Words" in prompt else " I do not know"

    figures, _ = measured(copies_only, new_tokens=200)
    assert figures == {"arithmetic-and-copy": 0.5, "arithmetic": 0, "copy": 1}


def test_nearly_right_is_wrong():
    figures, _ = measured(lambda prompt: first_line(right(prompt)) + "0", new_tokens=200)
    assert figures["arithmetic-and-copy"] == 0


def test_the_questions_are_drawn_from_the_seed_of_the_options_alone():
    def asked(**options):
        prompts = []
        measured(lambda prompt: prompts.append(prompt) or "no", **options)
        return prompts

    assert asked() == asked()
    assert asked(question_seed=1) != asked()
    torch.manual_seed(5)
    assert asked() == asked()


@pytest.mark.parametrize("examples", [0, 3])
def test_every_question_stands_behind_solved_examples(examples):
    prompts = []
    measured(lambda prompt: prompts.append(prompt) or "no", examples=examples)
    assert {prompt.count("Answer:") + prompt.count("Copy:") for prompt in prompts} == {examples + 1}
    for prompt in prompts:
        for a, b, answer in re.findall(r"(\d+) \+ (\d+)\nAnswer: (\d+)", prompt):
            assert int(a) + int(b) == int(answer)


def test_questions_are_drawn_as_described():
    """One question is drawn between the examples and the one that is asked."""
    prompts = []
    measured(lambda prompt: prompts.append(prompt) or "no", examples=1)
    draw = random.Random("arithmetic 0")
    sums = [(draw.randint(0, 20), draw.randint(0, 20)) for _ in range(36)]
    expected = [
        f"Question: {a} + {b}\nAnswer: {a + b}\n\nQuestion: {c} + {d}\nAnswer:"
        for (a, b), (c, d) in zip(sums[::3], sums[2::3], strict=True)
    ]
    assert sorted(prompts[:12]) == sorted(expected)
    draw = random.Random("copy 0")
    words = [" ".join(draw.sample(WORDS, 4)) for _ in range(36)]
    expected = [
        f"Words: {solved}\nCopy: {solved}\n\nWords: {asked}\nCopy:"
        for solved, asked in zip(words[::3], words[2::3], strict=True)
    ]
    assert sorted(prompts[12:]) == sorted(expected)


def test_progress_counts_questions_of_both_kinds():
    seen = []
    _, model = measured(right, seen=seen)
    done = itertools.accumulate(model.batches)
    assert seen == [(each, 24) for each in done]


def test_questions_are_answered_in_batches_and_right_answers_need_no_decoding():
    _, model = measured(right, batch_size=5)
    assert model.batches == [5, 5, 2] * 2
    assert model.decoded == []


def test_an_answer_in_other_tokens_is_decoded_and_right():
    """'1' and '2' for ' 12', or a space more: another beginning of the same text."""
    figures, model = measured(lambda prompt: "  " + right(prompt), new_tokens=200)
    assert figures["arithmetic-and-copy"] == 1
    assert len(model.decoded) == 24


def test_decoding_ends_when_the_answer_is_decided():
    """Not at the most tokens of an answer: a model may never stop writing."""

    def wrong(prompt):
        return "\n I do not know" + " word" * 100

    figures, model = measured(wrong, new_tokens=90)
    assert figures["arithmetic-and-copy"] == 0
    assert len(model.decoded) == 24
    assert max(model.steps) < 10


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("", None),
        (" 1", None),
        (" 12", None),
        ("12 ", None),
        ("12\n", True),
        ("\n\n12\nmore", True),
        ("1\n", False),
        (" 13", False),
        ("12 a", False),
        ("1\ufffd", None),
        ("3\ufffd", False),
    ],
)
def test_a_text_decides_once_it_has_left_the_answer_or_its_line(text, right):
    assert _decided(text, "12") is right


def test_an_answer_that_the_end_or_the_limit_cuts_is_judged_as_it_is():
    tokenizer = gpt2_like()
    whole = [len(tokenizer(f" {n}")["input_ids"]) for n in range(41)]
    figures, _ = measured(right, new_tokens=max(whole), largest=20)
    assert figures["arithmetic"] == 1  # complete, although nothing follows
    figures, model = measured(lambda prompt: right(prompt)[:-1], new_tokens=1, largest=10**6)
    assert figures["arithmetic"] == 0
    assert model.decoded == []


def test_a_real_model_is_scored():
    tokenizer = gpt2_like()
    model = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=1024).eval()
    metric = ArithmeticAndCopy(ArithmeticAndCopy.Options(questions=3, examples=1, new_tokens=4))
    context = MetricContext(tokens=None, seed=0, load_dense=lambda: None)
    figures = metric.measure(model, tokenizer, context)
    assert set(figures) == {"arithmetic-and-copy", "arithmetic", "copy"}
    assert all(0 <= value <= 1 for value in figures.values())


@pytest.mark.parametrize(
    ("text", "line"), [(" 12\n\nQuestion", "12"), ("\n\n 7 ", "7"), ("", ""), ("  \n", "")]
)
def test_the_answer_is_the_first_line_with_something_in_it(text, line):
    assert first_line(text) == line


def test_the_figures_are_those_of_decoding_every_answer(monkeypatch):
    """With a model that learned its questions by heart, in part."""
    tokenizer = gpt2_like()
    options = ArithmeticAndCopy.Options(questions=8, examples=1, new_tokens=16, words=2)
    metric = ArithmeticAndCopy(options)
    model = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=1024)
    learn(model, tokenizer, metric)
    context = MetricContext(tokens=None, seed=0, load_dense=lambda: None)
    figures = metric.measure(model.eval(), tokenizer, context)
    assert 0 < figures["arithmetic-and-copy"] < 1
    monkeypatch.setattr("prunebench_plugins.arithmetic_copy._decided", lambda *_: None)
    assert metric.measure(model, tokenizer, context) == figures


def learn(model, tokenizer, metric) -> None:
    """Train ``model`` for a moment on the first questions of each kind."""
    texts = []
    for kind, questions in {"arithmetic": metric._sums, "copy": metric._copies}.items():
        draw = random.Random(f"{kind} 0")
        for _ in range(5):
            one = _with_examples(questions(draw), 1)
            texts.append(tokenizer(one.prompt + one.answer + "\n")["input_ids"])
    model.requires_grad_(True)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(40):
        for ids in texts:
            batch = torch.tensor([ids])
            model(batch, labels=batch).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
