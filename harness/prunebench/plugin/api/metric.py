"""The base class of metrics, which judge a pruned model beside perplexity and tasks.

A suite names them under `quality.metrics`. Nothing here imports torch, so that `prunebench plugins`
stays fast.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from prunebench.callbacks import ignore
from prunebench.errors import PrunebenchError
from prunebench.plugin.api import options
from prunebench.plugin.api.method import Reference

if TYPE_CHECKING:
    import torch

    from prunebench.measure.quality.choice_scores import ChoiceScores
    from prunebench.measure.quality.text_passes import TextPasses
    from prunebench.record.quality import TaskResult


LONGEST_METRIC_NOTES = 50_000
"""Characters of JSON. Longer notes are dropped: a cell can have many metrics, a run many cells."""


class Figure(NamedTuple):
    """What one number of a metric means."""

    unit: str
    """As tables show it, e.g. 'nats'; 'share' for a number between 0 and 1; '' for no unit."""
    higher_is_better: bool


@dataclass
class MetricContext:
    """What a metric gets beside the model. Valid while `Metric.measure` runs."""

    tokens: torch.Tensor | None
    """What `windows` returns, or None if the metric does not ask for text."""
    seed: int
    """The cell's seed. torch, numpy and random are seeded with it before each metric."""
    # A function, because loading a second model takes memory that most metrics do not need.
    load_dense: Callable[[], Any]
    """What `dense` calls."""
    progress: Callable[[int, int], None] = ignore
    """Call it with (done, total) to move the progress bar."""
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("prunebench"))
    notes: dict[str, Any] = field(default_factory=dict)
    """What the record shall hold beside the figures: values that JSON has, not longer than
    `LONGEST_METRIC_NOTES`. A report section finds them in `Record.quality.metrics`."""
    end_tokens: Collection[int] = ()
    """Ids of the tokens that end a text."""
    tasks: Sequence[TaskResult] = ()
    """What the model scored in the suite's tasks; `TaskResult.correct` has every question."""
    score_choices: Callable[[Any], Mapping[str, Sequence[ChoiceScores]]] | None = None
    """What `choice_scores` calls; None if the suite has no tasks."""
    passes: TextPasses | None = None
    """Passes over text that measures and cells share; None: this metric makes its own."""
    questions: str | None = None
    """Identifies the questions of the tasks; None if nothing pins them."""

    @property
    def windows(self) -> torch.Tensor:
        """The text as token ids, int64 [windows, length], on the device of the model's embedding.

        Raises PrunebenchError if the metric does not set `needs_text`.
        """
        if self.tokens is None:
            raise PrunebenchError(
                "the metric asks for text and the cell has none for it",
                hint="set `needs_text = True` in the metric",
            )
        return self.tokens

    def dense(self) -> Any:
        """The dense model, in evaluation mode, on the device of the pruned one. Do not change it.

        It is loaded when the first metric of a cell asks for it, and kept for the other metrics, so
        memory holds two models. Raises PrunebenchError if there is not enough memory; the metric is
        then not available. `both_logits`, `dense_continuations` and `dense_choice_scores` need it
        only if no other cell has left in the cache what they give.
        """
        return self.load_dense()

    def both_logits(self, model: Any, tokens: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The logits of the dense model and of ``model`` after every token of `windows`, in order.

        ``model`` is the one that `Metric.measure` gets. Each pair is [at most ``tokens``,
        vocabulary] and belongs to one window. Set `Metric.needs_logits`: the pass of a model that
        perplexity or another cell has made over the same text is then not made again. It moves the
        progress bar. Raises PrunebenchError as `dense` does.
        """
        return self._passes().both_logits(
            model, self.load_dense, self.windows, tokens, self.progress
        )

    def dense_continuations(self, prompts: torch.Tensor, new_tokens: int) -> list[torch.Tensor]:
        """What the dense model writes after each prompt: `greedy_continuations` of `dense`.

        If another cell of this model has asked for it, neither is the model loaded nor anything
        decoded. Raises PrunebenchError as these two do.
        """
        return self._passes().continuations(self.load_dense, prompts, new_tokens, self.end_tokens)

    def dense_choice_scores(self) -> Mapping[str, Sequence[ChoiceScores]]:
        """What the dense model makes of every question: `choice_scores` of `dense`.

        It takes no time if another cell of this model has asked for it, unless nothing pins the
        questions, as with rows that come from the Hub. Raises PrunebenchError as these two do.
        """
        return self._passes().choice_scores(self.load_dense, self.choice_scores, self.questions)

    def _passes(self) -> TextPasses:
        from prunebench.measure.quality.text_passes import TextPasses

        if self.passes is None:
            self.passes = TextPasses()
        return self.passes

    def choice_scores(self, model: Any) -> Mapping[str, Sequence[ChoiceScores]]:
        """What a model makes of every question of the suite's multiple-choice tasks, by task.

        The questions are in the order of `TaskResult.correct`. It takes as long as the tasks do.
        Raises PrunebenchError if the suite has no tasks.
        """
        if self.score_choices is None:
            raise PrunebenchError(
                "the metric asks for multiple-choice tasks and the suite has no tasks",
                hint="add for example tasks: [arc_easy, hellaswag] to quality",
            )
        return self.score_choices(model)

    def greedy_continuations(
        self,
        model: Any,
        prompts: torch.Tensor,
        new_tokens: int,
        until: Callable[[list[int]], bool] | None = None,
    ) -> list[torch.Tensor]:
        """What a model writes after each prompt by greedy decoding, with a KV cache.

        ``prompts`` are int64 [batch, prompt], such as a part of `windows`. Gives an int64 [tokens]
        for each of them: ``new_tokens``, or fewer if one of `end_tokens` comes, which is then the
        last, or if ``until`` says of the tokens so far that they are enough. Raises PrunebenchError
        if that is more tokens than the model has positions.
        """
        from prunebench.measure.quality.greedy import greedy_continuations

        return greedy_continuations(model, prompts, new_tokens, self.end_tokens, until)

    def greedy_choices(
        self, model: Any, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> list[list[int]]:
        """What greedy decoding writes as long as it follows a given text, without decoding.

        ``prompts`` and ``continuations`` are token ids; no prompt is empty. Gives for each pair the
        most likely token after the prompt and the first 0, 1, 2, ... tokens of the continuation,
        one more than the continuation has. If they equal the continuation, the model writes it.
        One pass over all tokens takes a fraction of the time of `greedy_continuations`. Raises
        PrunebenchError if a text has more tokens than the model positions.
        """
        from prunebench.measure.quality.greedy import greedy_choices

        return greedy_choices(model, prompts, continuations)


class Metric(ABC):
    """A measure of quality: subclass it, and return the class from `prunebench_register_metric`.

    The instance lives in the process of the cell. It runs after perplexity and tasks and before
    anything is timed. It must not change the model: if it changes a weight, the cell fails. If it
    raises an exception, its figures are not available, and the cell goes on.
    """

    name: ClassVar[str]
    unit: ClassVar[str] = ""
    """Unit of the figure that has the metric's own name, see `Figure.unit`."""
    higher_is_better: ClassVar[bool]
    """For the figure that has the metric's own name."""
    figures: ClassVar[Mapping[str, Figure]] = {}
    """The other figures that `measure` returns, by name."""
    generative: ClassVar[bool] = False
    """Whether the figure with the metric's own name judges what the model writes. The suite's
    generation gate (`quality.gate.generation`) then counts its share of dense."""
    needs_text: ClassVar[bool] = False
    """Whether it uses `context.windows`. Their text is the metric's own `data:` in the suite, or
    that of the suite's first perplexity."""
    needs_logits: ClassVar[bool] = False
    """Whether it uses `context.both_logits`, for which it needs `needs_text` too."""
    needs_tasks: ClassVar[bool] = False
    """Whether it uses `context.tasks` or `context.choice_scores`; a suite without tasks is then
    refused."""
    reference: ClassVar[Reference | None] = None

    class Options(options.Options):
        """The metric's options; replace it with your own subclass of `prunebench.Options`."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def measure(
        self, model: Any, tokenizer: Any, context: MetricContext
    ) -> float | Mapping[str, float]:
        """Return the figure, or several by name.

        The names are the metric's own and those in ``figures``; any other name has the unit and the
        direction of the metric itself. NaN and infinity count as not available.

        ``model`` is a transformers causal LM in evaluation mode; gradients are off. Raise
        `prunebench.PrunebenchError` for problems that the user can fix.
        """
