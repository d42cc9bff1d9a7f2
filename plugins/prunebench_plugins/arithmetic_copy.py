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
        """Whether each answer is right.

        A pass over the prompt with its answer tells what the model writes until it leaves the
        answer, which decides most questions. The others are decoded token by token.
        """
        for start in range(0, len(asked), self.options.batch_size):
            batch = asked[start : start + self.options.batch_size]
            prompts = [tokenizer(one.prompt, add_special_tokens=True)["input_ids"] for one in batch]
            answers = [
                tokenizer(one.answer, add_special_tokens=False)["input_ids"] for one in batch
            ]
            chosen = context.greedy_choices(model, prompts, answers)
            for one, prompt, answer, best in zip(batch, prompts, answers, chosen, strict=True):
                wanted = one.answer.strip()
                tokens = _written(best, answer)[: self.options.new_tokens]
                text = tokenizer.decode(tokens, skip_special_tokens=True)
                ends = len(tokens) == self.options.new_tokens or tokens[-1] in context.end_tokens
                right = first_line(text) == wanted if ends else _decided(text, wanted)
                if right is None:
                    right = self._decoded_right(model, tokenizer, context, prompt, wanted)
                yield right
            moved(start + len(batch))

    def _decoded_right(
        self,
        model: Any,
        tokenizer: Any,
        context: MetricContext,
        prompt: Sequence[int],
        wanted: str,
    ) -> bool:
        """Whether the model writes what is wanted, decoded until that is decided."""

        def text_of(tokens: list[int]) -> str:
            return str(tokenizer.decode(tokens, skip_special_tokens=True))

        device = model.get_input_embeddings().weight.device
        (tokens,) = context.greedy_continuations(
            model,
            torch.tensor([prompt], device=device),
            self.options.new_tokens,
            lambda tokens: _decided(text_of(tokens), wanted) is not None,
        )
        return first_line(text_of(tokens.tolist())) == wanted


def _with_examples(questions: Iterator[Question], examples: int) -> Question:
    """A question behind ``examples`` solved ones."""
    solved = "".join(
        f"{one.prompt}{one.answer}\n\n" for one, _ in zip(questions, range(examples), strict=False)
    )
    last = next(questions)
    return Question(solved + last.prompt, last.answer)


def _written(best: Sequence[int], answer: Sequence[int]) -> list[int]:
    """The tokens that greedy decoding writes, up to the first that is not the answer's."""
    same = next(
        (at for at, token in enumerate(answer) if best[at] != token),
        len(answer),
    )
    return [*answer[:same], best[same]]


def _decided(text: str, wanted: str) -> bool | None:
    """Whether an answer that begins with ``text`` is ``wanted``; None if that is still open."""
    begun = text.lstrip()
    if len((begun + ".").splitlines()) > 1:  # the line has ended
        return first_line(text) == wanted
    # The bytes of a character may come in several tokens.
    return None if wanted.startswith(begun.rstrip("\ufffd").rstrip()) else False


def first_line(text: str) -> str:
    """The first line with something in it, without spaces around it."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


@hookimpl
def prunebench_register_metric() -> type[Metric]:
    return ArithmeticAndCopy
