"""Repetition, loops and premature ends in what a model writes, with samples beside dense."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

import prunebench
from prunebench import (
    Field,
    Figure,
    Folded,
    Metric,
    Paragraph,
    Reference,
    ReportSection,
    Texts,
    hookimpl,
)

if TYPE_CHECKING:
    from prunebench import MetricContext, ReportData

NAME = "generation-health"
SAMPLES = 3
# Characters of a sample; the record and the report hold three for each cell.
LONGEST_PROMPT = 300
LONGEST_TEXT = 700
# Cells whose samples the report shows: a run may have a thousand.
MOST_CELLS = 60


class GenerationHealth(Metric):
    """Share of greedy continuations that neither end in a loop nor end too early.

    Pruning can keep the scores of multiple choice and lose generation
    (https://arxiv.org/abs/2602.01997), and perplexity, which reads text that people wrote, never
    sees what the model does with text of its own. The prompts are short pieces of the metric's
    text, the same for every cell of a suite. Look at the difference from dense: greedy decoding
    makes small dense models loop, too. It does not count for a generation gate: a text can be
    healthy and wrong, and a pruned model healthier than dense would hide what it gets wrong.

    ``repetition`` is seq-rep-n of Welleck et al., 1 - distinct n-grams / n-grams of a continuation,
    as a mean over continuations. ``loops`` is the share that ends in a piece repeated without a
    break, ``premature-ends`` the share that comes to an end-of-text token too early. Three
    continuations are notes on the record, and the report shows them beside dense's.
    """

    name = NAME
    unit = "share"
    higher_is_better = True
    figures = {  # noqa: RUF012
        "repetition": Figure("share", higher_is_better=False),
        "loops": Figure("share", higher_is_better=False),
        "premature-ends": Figure("share", higher_is_better=False),
    }
    generative = True
    needs_text = True
    reference = Reference(
        title="Neural Text Generation with Unlikelihood Training", arxiv="1908.04319"
    )

    class Options(prunebench.Options):
        prompts: int = Field(
            16, gt=0, le=10_000, description="number of prompts, pieces of the metric's text"
        )
        prompt: int = Field(
            32,
            gt=0,
            le=131_072,
            description="tokens of a prompt; a shorter window is a prompt as a whole",
        )
        prompt_seed: int = Field(
            0, ge=0, description="draws the prompts; the cell's seed does not change them"
        )
        new_tokens: int = Field(96, gt=0, le=131_072, description="tokens of a continuation")
        ngram: int = Field(4, gt=0, le=64, description="n of the n-grams whose repetition counts")
        repeats: int = Field(
            3, ge=2, le=64, description="a loop is a piece that fills the end this many times, ..."
        )
        loop_tokens: int = Field(
            16, gt=0, le=131_072, description="... and at least this many tokens"
        )
        least_tokens: int = Field(
            16, ge=0, le=131_072, description="a text that ends before so many tokens is premature"
        )
        batch_size: int = Field(16, gt=0, description="prompts that are continued together")

    def measure(self, model: Any, tokenizer: Any, context: MetricContext) -> dict[str, float]:
        options = self.options
        prompts = draw_prompts(
            context.windows, options.prompts, options.prompt, options.prompt_seed
        )
        found: list[Continuation] = []
        for start in range(0, len(prompts), options.batch_size):
            batch = prompts[start : start + options.batch_size]
            for tokens in context.greedy_continuations(model, batch, options.new_tokens):
                found.append(self._judge(tokens.tolist(), context.end_tokens))
            context.progress(len(found), len(prompts))
        context.notes["samples"] = [
            {
                "prompt": tokenizer.decode(prompt.tolist())[-LONGEST_PROMPT:],
                "text": tokenizer.decode(one.tokens)[:LONGEST_TEXT],
                "ended": one.ended,
                "loop": one.loop,
            }
            for prompt, one in zip(prompts[:SAMPLES], found, strict=False)
        ]
        figures = {
            self.name: _share([one.loop is None and not one.early for one in found]),
            "loops": _share([one.loop is not None for one in found]),
            "premature-ends": _share([one.early for one in found]),
        }
        # A text shorter than one n-gram says nothing about repetition.
        long = [one.tokens for one in found if len(one.tokens) >= options.ngram]
        if long:
            repeated = [repetition(tokens, options.ngram) for tokens in long]
            figures["repetition"] = sum(repeated) / len(repeated)
        return figures

    def _judge(self, tokens: list[int], ends: Collection[int]) -> Continuation:
        ended = tokens[-1] in ends
        text = tokens[:-1] if ended else tokens
        # A text that came to an end has left its loop.
        loop = None if ended else loop_period(text, self.options.repeats, self.options.loop_tokens)
        return Continuation(text, ended, loop, ended and len(text) < self.options.least_tokens)


@dataclass(frozen=True)
class Continuation:
    """What a model wrote after one prompt."""

    tokens: list[int]
    """Without the end-of-text token."""
    ended: bool
    """Whether there was one."""
    loop: int | None
    """The period of the loop at the end, in tokens."""
    early: bool
    """Whether it ended too early."""


def draw_prompts(windows: torch.Tensor, count: int, length: int, seed: int) -> torch.Tensor:
    """``count`` different pieces of the windows, or all if there are fewer.

    ``windows`` are int64 [windows, tokens]; gives int64 [prompts, length].
    """
    length = min(length, windows.shape[1])
    pieces = windows.unfold(1, length, 1)  # every start of a piece: [windows, starts, length]
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(pieces.shape[0] * pieces.shape[1], generator=generator)[:count].tolist()
    starts = pieces.shape[1]
    return torch.stack([pieces[one // starts, one % starts] for one in chosen])


def repetition(tokens: Sequence[int], n: int) -> float:
    """seq-rep-n: 1 - distinct n-grams / n-grams, of at least ``n`` tokens."""
    grams = [tuple(tokens[at : at + n]) for at in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams)


def loop_period(tokens: Sequence[int], repeats: int, least: int) -> int | None:
    """The length of the shortest piece that repeats up to the end; None if there is no loop.

    The piece fills the end at least ``repeats`` times and over at least ``least`` tokens.
    """
    for period in range(1, len(tokens) // repeats + 1):
        same = 0
        while period + same < len(tokens) and tokens[-1 - same] == tokens[-1 - same - period]:
            same += 1
        # `same` tokens equal those one period before, so the last `same + period` are periodic.
        if same + period >= max(repeats * period, least):
            return period
    return None


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values)


class GenerationSamples(ReportSection):
    """The samples of every cell beside those of dense."""

    name = "generation-samples"
    title = "What the models write"

    def build(self, data: ReportData) -> list[Paragraph | Folded]:
        by_id = {record.id: record for record in data.records}
        folds = [
            Folded(_title(row, result), list(_side_by_side(row["name"], result, dense)))
            for row in data.rows
            if row["method"] != "dense"
            for result in _results(by_id[row["cell"]])
            for dense in [_same_prompts(by_id.get(row["dense_cell"]), result)]
        ]
        if not folds:
            return []
        left = len(folds) - MOST_CELLS
        more = (
            [Paragraph(f"The records have the samples of {left} more cells.")] if left > 0 else []
        )
        return [Paragraph(_ABOUT), *folds[:MOST_CELLS], *more]


_ABOUT = (
    "Greedy continuations of the same prompts by each cell and by dense, the first three of those "
    "that the metric generation-health judges. They are cut to some hundred characters. The "
    "figures are among the further metrics."
)


def _side_by_side(
    name: str, result: Any, dense: Mapping[str, Mapping[str, Any]]
) -> Iterator[Paragraph | Texts]:
    """For each sample its prompt, and then what both models make of it."""
    for sample in result.notes["samples"]:
        yield Paragraph(f"Prompt: {sample['prompt']}")
        pairs = [("dense", dense.get(sample["prompt"])), (name, sample)]
        yield Texts([(f"{who}{_remark(one)}", one["text"]) for who, one in pairs if one])


def _title(row: Mapping[str, Any], result: Any) -> str:
    values = {figure.name: figure.value for figure in result.figures}
    said = [
        f"{100 * values[key]:.0f} % {words}"
        for key, words in (
            (NAME, "healthy"),
            ("loops", "end in a loop"),
            ("premature-ends", "end too early"),
        )
        if values.get(key) is not None
    ]
    return f"{row['name']}: {', '.join(said)}" if said else str(row["name"])


def _remark(sample: Mapping[str, Any]) -> str:
    if sample["loop"]:
        return f" (loop of {sample['loop']} tokens)"
    return " (ended)" if sample["ended"] else ""


def _results(record: Any) -> list[Any]:
    measured = record.quality.metrics if record is not None and record.quality else []
    return [one for one in measured if one.metric == NAME and one.notes.get("samples")]


def _same_prompts(dense: Any, result: Any) -> dict[str, Mapping[str, Any]]:
    """The samples of the dense record by their prompts, of the metric with the same options."""
    alike = [one for one in _results(dense) if one.label == result.label]
    return {sample["prompt"]: sample for one in alike for sample in one.notes["samples"]}


@hookimpl
def prunebench_register_metric() -> type[Metric]:
    return GenerationHealth


@hookimpl
def prunebench_register_report_section() -> type[ReportSection]:
    return GenerationSamples
