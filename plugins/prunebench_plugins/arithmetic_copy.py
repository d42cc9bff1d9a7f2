"""Sums and copies that a model writes out: generation scored without a hub or a download."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

import prunebench
from prunebench import Field, Figure, Metric, Reference, hookimpl

if TYPE_CHECKING:
    from prunebench import MetricContext

NAME = "arithmetic-and-copy"
# Common words of one or two tokens in most vocabularies; their order carries no meaning.
WORDS = [
    "apple",
    "river",
    "stone",
    "garden",
    "window",
    "summer",
    "yellow",
    "paper",
    "mother",
    "silver",
    "market",
    "ocean",
    "winter",
    "bridge",
    "forest",
    "letter",
    "doctor",
    "island",
    "kitchen",
    "morning",
    "number",
    "orange",
    "people",
    "school",
    "table",
    "village",
    "water",
]


class Question(NamedTuple):
    """A question with its one right answer."""

    prompt: str
    answer: str


class ArithmeticAndCopy(Metric):
    """Share of sums and copies that the model writes out exactly, as a mean over both.

    Layer pruning keeps multiple choice and loses generation (https://arxiv.org/abs/2602.01997).
    This is a stand-in for GSM8K on machines without a hub: additions of small numbers
    (``arithmetic``) and words to repeat in their order (``copy``), drawn from a seed, each behind
    solved examples. The answer is the first line that the model writes greedily. The questions are
    the same for every cell of a suite. Look at the share of dense: small models add badly.
    """

    name = NAME
    unit = "share"
    higher_is_better = True
    generative = True
    figures = {  # noqa: RUF012
        "arithmetic": Figure("share", higher_is_better=True),
        "copy": Figure("share", higher_is_better=True),
    }
    reference = Reference(title="Layer pruning and generation", arxiv="2602.01997")

    class Options(prunebench.Options):
        questions: int = Field(48, gt=0, le=10_000, description="questions of each kind")
        examples: int = Field(6, ge=0, le=64, description="solved examples before each question")
        largest: int = Field(20, gt=0, le=10**9, description="the largest number that is added")
        words: int = Field(4, gt=0, le=len(WORDS), description="words to copy")
        question_seed: int = Field(
            0, ge=0, description="draws the questions; the cell's seed does not change them"
        )
        new_tokens: int = Field(24, gt=0, le=4096, description="the most tokens of an answer")
        batch_size: int = Field(16, gt=0, description="questions that are answered together")

    def measure(self, model: Any, tokenizer: Any, context: MetricContext) -> dict[str, float]:
        options = self.options
        kinds = {"arithmetic": self._sums, "copy": self._copies}
        shares: dict[str, float] = {}
        for number, (name, questions) in enumerate(kinds.items()):
            draw = random.Random(f"{name} {options.question_seed}")
            asked = [_with_examples(questions(draw), options.examples) for _ in range(self._count)]

            def moved(done: int, number: int = number) -> None:
                context.progress(number * self._count + done, len(kinds) * self._count)

            right = list(self._right(model, tokenizer, context, asked, moved))
            shares[name] = sum(right) / len(right)
        return {self.name: sum(shares.values()) / len(shares), **shares}

    @property
    def _count(self) -> int:
        return int(self.options.questions)

    def _sums(self, draw: random.Random) -> Iterator[Question]:
        while True:
            a, b = draw.randint(0, self.options.largest), draw.randint(0, self.options.largest)
            yield Question(f"Question: {a} + {b}\nAnswer:", f" {a + b}")

    def _copies(self, draw: random.Random) -> Iterator[Question]:
        while True:
            words = " ".join(draw.sample(WORDS, self.options.words))
            yield Question(f"Words: {words}\nCopy:", f" {words}")

    def _right(
        self,
        model: Any,
        tokenizer: Any,
        context: MetricContext,
        asked: Sequence[Question],
        moved: Any,
    ) -> Iterator[bool]:
        """Whether each answer is right. Prompts of equal length go together: no padding."""
        device = model.get_input_embeddings().weight.device
        encoded = [tokenizer(one.prompt, add_special_tokens=True)["input_ids"] for one in asked]
        by_length: dict[int, list[int]] = {}
        for index, ids in enumerate(encoded):
            by_length.setdefault(len(ids), []).append(index)
        done = 0
        for indices in by_length.values():
            for start in range(0, len(indices), self.options.batch_size):
                batch = indices[start : start + self.options.batch_size]
                prompts = torch.tensor([encoded[index] for index in batch], device=device)
                written = context.greedy_continuations(model, prompts, self.options.new_tokens)
                for index, tokens in zip(batch, written, strict=True):
                    text = tokenizer.decode(tokens.tolist(), skip_special_tokens=True)
                    yield first_line(text) == asked[index].answer.strip()
                done += len(batch)
                moved(done)


def _with_examples(questions: Iterator[Question], examples: int) -> Question:
    """A question behind ``examples`` solved ones."""
    solved = "".join(
        f"{one.prompt}{one.answer}\n\n" for one, _ in zip(questions, range(examples), strict=False)
    )
    last = next(questions)
    return Question(solved + last.prompt, last.answer)


def first_line(text: str) -> str:
    """The first line with something in it, without spaces around it."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


@hookimpl
def prunebench_register_metric() -> type[Metric]:
    return ArithmeticAndCopy
