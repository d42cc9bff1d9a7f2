from __future__ import annotations

import itertools
import random
import re
from types import SimpleNamespace

import pytest
import torch

from prunebench.plugin.api.metric import MetricContext
from prunebench_plugins.arithmetic_copy import WORDS, ArithmeticAndCopy, first_line
from small_tokenizers import gpt2_like
from tiny import tiny_model


class Pupil(torch.nn.Module):
    """A model that answers as ``reply`` says: text in, text out, one token after the other."""

    def __init__(self, tokenizer, reply) -> None:
        super().__init__()
        self.tokenizer, self.reply = tokenizer, reply
        self.embedding = torch.nn.Embedding(len(tokenizer), 2)
        self.config = SimpleNamespace(eos_token_id=None, max_position_embeddings=4096)
        self.batches = []

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

    def continued(_model, prompts, new_tokens):
        model.batches.append(tuple(prompts.shape))
        texts = [reply(tokenizer.decode(one.tolist())) for one in prompts]
        return [torch.tensor(tokenizer(text)["input_ids"][:new_tokens]) for text in texts]

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
        measured(lambda prompt: prompts.append(prompt) or "", **options)
        return prompts

    assert asked() == asked()
    assert asked(question_seed=1) != asked()
    torch.manual_seed(5)
    assert asked() == asked()


@pytest.mark.parametrize("examples", [0, 3])
def test_every_question_stands_behind_solved_examples(examples):
    prompts = []
    measured(lambda prompt: prompts.append(prompt) or "", examples=examples)
    assert {prompt.count("Answer:") + prompt.count("Copy:") for prompt in prompts} == {examples + 1}
    for prompt in prompts:
        for a, b, answer in re.findall(r"(\d+) \+ (\d+)\nAnswer: (\d+)", prompt):
            assert int(a) + int(b) == int(answer)


def test_questions_are_drawn_as_described():
    """One question is drawn between the examples and the one that is asked."""
    prompts = []
    measured(lambda prompt: prompts.append(prompt) or "", examples=1)
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
    done = itertools.accumulate(rows for rows, _ in model.batches)
    assert seen == [(each, 24) for each in done]


def test_prompts_of_one_length_go_together_without_padding():
    _, model = measured(right, batch_size=4)
    assert max(rows for rows, _ in model.batches) <= 4
    assert sum(rows for rows, _ in model.batches) == 24


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
