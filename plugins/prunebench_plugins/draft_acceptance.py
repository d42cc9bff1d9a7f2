"""The pruned model as a draft of its dense parent: tokens accepted per step of greedy decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import prunebench
from prunebench import (
    Field,
    Figure,
    Metric,
    Paragraph,
    PrunebenchError,
    Reference,
    ReportSection,
    Table,
    hookimpl,
)

if TYPE_CHECKING:
    from prunebench import MetricContext, ReportData

NAME = "draft-acceptance"
LONGEST_DRAFT = 8
# Share of the cores that others may use before a time is no evidence, as in the verdict.
CONTENDED = 0.1


def accepted_name(k: int) -> str:
    """The name of the figure for drafts of ``k`` tokens."""
    return f"accepted-{k}"


class DraftAcceptance(Metric):
    """Tokens of the pruned model that its dense parent accepts in greedy speculative decoding.

    In every step the draft (the pruned model) proposes k tokens, the dense model reads them in one
    pass, and accepts them up to the first that is not its own most likely token. It adds that one
    itself, so a step gives one token more than it accepts. The text that comes out is the dense
    model's own greedy continuation, and as long as all its tokens were accepted the draft has read
    exactly that text. So no loop of two models is needed: the dense model writes its continuation
    of each prompt once, one pass of the pruned model over prompt and continuation says for every
    token whether the draft would have proposed it, and the steps for each k are counted on that.
    The counts are those of the loop, for k = 1 to 8.

    The figure with the metric's own name is the acceptance rate: the share of the dense model's
    tokens that the pruned model ranks first too. ``accepted-K`` is the mean number of draft tokens
    accepted per step, at most K. Continuations end at an end-of-text token. In half precision even
    the dense model disagrees with itself at near-ties, because a pass over many tokens rounds
    differently from a pass over one.
    """

    name = NAME
    unit = "share"
    higher_is_better = True
    figures = {  # noqa: RUF012
        accepted_name(k): Figure("tokens", higher_is_better=True)
        for k in range(1, LONGEST_DRAFT + 1)
    }
    needs_text = True
    reference = Reference(
        title="Fast Inference from Transformers via Speculative Decoding", arxiv="2211.17192"
    )

    class Options(prunebench.Options):
        prompt: int = Field(
            64,
            gt=0,
            le=131_072,
            description="tokens at the beginning of each window that are the prompt; a shorter "
            "window is a prompt as a whole",
        )
        new_tokens: int = Field(
            64,
            gt=0,
            le=131_072,
            description="tokens of each continuation after which no further step begins",
        )
        batch_size: int = Field(
            16, gt=0, description="prompts that the dense model continues together"
        )

    def measure(self, model: Any, tokenizer: Any, context: MetricContext) -> dict[str, float]:
        del tokenizer
        prompts = context.windows[:, : self.options.prompt]  # [windows, prompt]
        # The last step begins before `new_tokens`, and its draft may reach this far beyond.
        length = self.options.new_tokens + LONGEST_DRAFT - 1
        rows: list[list[bool]] = []
        for start in range(0, len(prompts), self.options.batch_size):
            batch = prompts[start : start + self.options.batch_size]
            written = context.dense_continuations(batch, length)
            rows += agreement(model, context, batch.tolist(), [one.tolist() for one in written])
            context.progress(len(rows), len(prompts))
        tokens = [same for row in rows for same in row[: self.options.new_tokens]]
        return {self.name: sum(tokens) / len(tokens)} | {
            accepted_name(k): _mean_accepted(rows, k, self.options.new_tokens)
            for k in range(1, LONGEST_DRAFT + 1)
        }


def agreement(
    model: Any,
    context: MetricContext,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
) -> list[list[bool]]:
    """Whether ``model`` ranks each token of a continuation first, after the tokens before it."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if max(map(max, continuations)) >= vocabulary:
        raise PrunebenchError(
            f"the dense model writes tokens that the pruned one, with {vocabulary}, does not have",
            hint="leave out this metric: a draft must have the vocabulary of its parent",
        )
    chosen = context.greedy_choices(model, prompts, continuations)
    return [
        [one == token for one, token in zip(row, continuation, strict=False)]
        for row, continuation in zip(chosen, continuations, strict=True)
    ]


def accepted_by_step(same: Sequence[bool], k: int, new_tokens: int) -> list[int]:
    """Draft tokens accepted in each step, with drafts of ``k`` tokens.

    ``same`` says for every token of the dense continuation whether the draft proposes it. The last
    step is the one that begins before ``new_tokens`` and ends there or beyond.
    """
    steps: list[int] = []
    at = 0
    while at < min(new_tokens, len(same)):
        draft = same[at : at + k]
        accepted = draft.index(False) if False in draft else len(draft)
        steps.append(accepted)
        at += accepted + 1  # the dense model adds one token of its own
    return steps


def _mean_accepted(rows: Sequence[Sequence[bool]], k: int, new_tokens: int) -> float:
    steps = [one for row in rows for one in accepted_by_step(row, k, new_tokens)]
    return sum(steps) / len(steps)


def expected_speedup(accepted: float, k: int, cost: float) -> float:
    """Time of dense decoding / time of speculative decoding, per token.

    A step gives ``accepted`` + 1 tokens, and takes ``k`` passes of the draft, each ``cost`` times
    as long as a pass of the dense model, and one pass of the dense model: Theorem 3.8 of
    arXiv:2211.17192 with the counted tokens of a step in place of its equation 1, which assumes
    that every token is accepted with the same probability.
    """
    return (accepted + 1) / (k * cost + 1)


class DraftSpeedup(ReportSection):
    """What the acceptance and the measured latencies of both models promise together."""

    name = "draft-speedup"
    title = "Pruned models as drafts"

    def build(self, data: ReportData) -> list[Paragraph | Table]:
        by_id = {record.id: record for record in data.records}
        rows = [
            [row["name"], *_promise(_values(result.figures), row)]
            for row in data.rows
            if row["method"] != "dense"
            for result in _results(by_id[row["cell"]])
        ]
        if not rows:
            return []
        head = (
            "Cell",
            "Expected speed-up",
            "Its 95 % interval",
            "Best k",
            "Tokens per step",
            "Acceptance rate",
            "Latency, pruned / dense",
        )
        shapes = dict.fromkeys(row["latency_protocol"] for row in data.rows)
        caption = "; ".join(shape for shape in shapes if shape)
        return [Paragraph(_ABOUT), Table(head, rows, caption=caption)]


_ABOUT = (
    "The expected speed-up of greedy speculative decoding with the pruned model as the draft of "
    "the dense one, over dense decoding: (accepted + 1) / (k \N{MULTIPLICATION SIGN} c + 1). "
    "Accepted is the mean number of draft tokens that the dense model accepts per step, c is the "
    "pruned model's inter-token latency divided by dense's, as measured here, and k is the length "
    "of the draft, from 1 to 8, that gives the most. This is Theorem 3.8 of Leviathan et al. "
    "(arXiv:2211.17192) with counted tokens. It assumes that the dense model checks k + 1 tokens "
    "in the time of one, which is so while reading the weights takes the time. The interval comes "
    "from that of c alone. Below 1, dense decoding is faster."
)


def _promise(figures: Mapping[str, float | None], row: Mapping[str, Any]) -> list[str | None]:
    """The values of a row behind the cell's name."""
    rate = figures.get(NAME)
    shown = None if rate is None else f"{100 * rate:.1f} %"
    counted = {k: figures.get(accepted_name(k)) for k in range(1, LONGEST_DRAFT + 1)}
    accepted = {k: value for k, value in counted.items() if value is not None}
    if not accepted:
        return ["n/a: no acceptance was measured", None, None, None, shown, None]
    if reason := _untimed(row):
        return [f"n/a: {reason}", None, None, None, shown, None]

    def speedup(k: int, faster: float) -> float:
        """With a pruned model that is ``faster`` times as fast as dense."""
        return expected_speedup(accepted[k], k, 1 / faster)

    faster = row["inter_token_speedup"]
    best = max(accepted, key=lambda k: speedup(k, faster))
    ends = [row[f"inter_token_speedup_{end}"] for end in ("low", "high")]
    interval = [_times(speedup(best, end)) for end in ends if end]
    return [
        _times(speedup(best, faster)),
        " to ".join(interval) if len(interval) == len(ends) else None,
        str(best),
        f"{accepted[best] + 1:.2f}",
        shown,
        f"{1 / faster:.2f}",
    ]


def _untimed(row: Mapping[str, Any]) -> str | None:
    """Why nothing follows from the latencies of a row; None if they can be used."""
    if not row["inter_token_speedup"]:
        return row["speed_not_measurable"] or "no latency was measured"
    if row["disturbed_rounds"] is None and (row["cpu_others_share"] or 0) > CONTENDED:
        return "other processes used the cores while it was timed"
    if row["speedup_expected"] is False and (row["inter_token_speedup_bound"] or 0) > 1:
        return "the measured speed-up has no cause, so it is a measuring fault"
    return None


def _results(record: prunebench.Record) -> list[Any]:
    return [one for one in record.quality.metrics if one.metric == NAME] if record.quality else []


def _values(figures: Sequence[Any]) -> dict[str, float | None]:
    return {one.name: one.value for one in figures}


def _times(value: float) -> str:
    return f"{value:.2f}\N{MULTIPLICATION SIGN}"


@hookimpl
def prunebench_register_metric() -> type[Metric]:
    return DraftAcceptance


@hookimpl
def prunebench_register_report_section() -> type[ReportSection]:
    return DraftSpeedup
