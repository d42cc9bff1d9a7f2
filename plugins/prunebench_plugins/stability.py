"""Stability: how much of the dense model's right and wrong answers stay so (arXiv:2403.19135)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from prunebench import Metric, PrunebenchError, hookimpl
from prunebench_plugins.llm_streamline import REFERENCE

if TYPE_CHECKING:
    from prunebench import MetricContext


class Stability(Metric):
    """Weighted share of questions that both models answer rightly, or both wrongly.

    stability = sum over questions of w_i [right_i = dense right_i], with w_i = exp(s_i) / sum_j
    exp(s_j). s_i is the standard deviation of the perplexities that the dense model gives to the
    choices of question i, so that questions count more if the dense model is sure
    (arXiv:2403.19135, section 3.4). Equal accuracies can hide many answers that changed; the dense
    model has 1.

    As in the evaluation tool of the paper's code, "perplexity" is its logarithm: -ln p per token.
    Here it is that of the choice after the question; there of question and choice together, which
    makes all weights nearly equal. The script in the paper's repository adds up the weights of the
    first questions instead of those that agree; this is the paper's formula.

    The figure is the mean over the suite's multiple-choice tasks, and ``stability-TASK`` is that of
    one; a group counts as the mean of its parts. The dense model answers the tasks once more, in
    the first cell of a model that asks for it.
    """

    name = "stability"
    unit = "share"
    higher_is_better = True
    needs_tasks = True
    reference = REFERENCE

    def measure(self, model: Any, tokenizer: Any, context: MetricContext) -> dict[str, float]:
        del model, tokenizer
        dense = context.dense_choice_scores()
        correct = {one.task: one.correct for one in context.tasks}
        of_task = {
            task: stability(
                [statistics.pstdev(one.nll) for one in scores],
                [one.correct for one in scores],
                [right == "1" for right in correct[task] or ()],
            )
            for task, scores in dense.items()
            if correct.get(task)
        }
        figures = {
            one.task: statistics.fmean(found)
            for one in context.tasks
            if one.asked and (found := [*_of_parts(one, context.tasks, of_task)])
        }
        if not figures:
            raise PrunebenchError(
                "none of the suite's tasks is a multiple choice whose answers are right or wrong",
                hint="add for example arc_easy or hellaswag to quality.tasks",
            )
        return {self.name: statistics.fmean(figures.values())} | {
            f"{self.name}-{task}": value for task, value in figures.items()
        }


def stability(spreads: Sequence[float], dense: Sequence[bool], pruned: Sequence[bool]) -> float:
    """The paper's formula, from 0 to 1.

    ``spreads``: the standard deviation over the choices of each question, by the dense model.
    ``dense``, ``pruned``: whether each model is right. Raises PrunebenchError if they are answers
    to different numbers of questions.
    """
    if not len(spreads) == len(dense) == len(pruned):
        raise PrunebenchError(
            f"the dense model answered {len(dense)} questions and the pruned one {len(pruned)}",
            hint="run the cell again: the rows of the task changed in between",
        )
    largest = max(spreads)
    weights = [math.exp(each - largest) for each in spreads]  # the ratio of two stays the same
    agreed = [a == b for a, b in zip(dense, pruned, strict=True)]
    return math.fsum(w for w, same in zip(weights, agreed, strict=True) if same) / math.fsum(
        weights
    )


def _of_parts(one: Any, tasks: Sequence[Any], of_task: dict[str, float]) -> Iterator[float]:
    """The stability of a task, or of each task in a group."""
    if one.task in of_task:
        yield of_task[one.task]
    for part in tasks if one.aggregate else ():
        if part.group == one.task:
            yield from _of_parts(part, tasks, of_task)


@hookimpl
def prunebench_register_metric() -> type[Metric]:
    return Stability
