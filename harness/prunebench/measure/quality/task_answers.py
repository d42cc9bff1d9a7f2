"""What a model answers to each question of a task, noted while lm-eval scores the answers.

Two models with equal scores can answer differently. Their answers, question by question, tell how
often: arXiv:2407.09141, "Accuracy is Not All You Need", calls them flips.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

DIGITS = 6
"""Hexadecimal digits of the hash that stands for a written answer: one in 16 million is equal by
chance."""
MOST_QUESTIONS = 200_000
"""Answers of larger tasks are not kept, because they would make the record too large."""


class _Answer(NamedTuple):
    """One answered question."""

    choices: Mapping[str, str]
    """The answer by the metric that chooses it; by '' for all others."""
    scores: Mapping[str, Any]
    """What lm-eval gives for this question, by metric."""


class AnswerLog:
    """Sees each question of lm-eval's tasks when it is scored, by wrapping `process_results`."""

    def __init__(self, tasks: Mapping[str, Any]) -> None:
        self._tasks = tasks
        self._answers: dict[str, list[_Answer]] = {name: [] for name in tasks}
        for name, task in tasks.items():
            task.process_results = self._watched(name, task, task.process_results)

    def _watched(self, name: str, task: Any, score: Any) -> Any:
        def process_results(doc: Any, results: Any) -> Any:
            found = score(doc, results)
            if len(self._answers[name]) <= MOST_QUESTIONS:
                self._answers[name].append(_Answer(_choices(task, doc, results), dict(found)))
            return found

        return process_results

    def of(self, name: str, metric: str) -> tuple[str | None, str | None]:
        """The answers to all questions of a task, and whether each is right: see `TaskResult`.

        ``metric`` is the task's headline. Both are None for a group and for a very large task.
        """
        answered = self._answers.get(name, [])
        filters = self._filters(name)
        # lm-eval goes through all questions once for each filter; the first one is shown.
        first = answered[: len(answered) // filters]
        if not first or len(answered) > MOST_QUESTIONS or len(answered) % filters:
            return None, None
        answers = [one.choices.get(metric, one.choices.get("")) for one in first]
        right = [one.scores.get(metric) for one in first]
        return (
            None if None in answers else " ".join(str(answer) for answer in answers),
            "".join("1" if score else "0" for score in right)
            if all(map(_is_truth, right))
            else None,
        )

    def _filters(self, name: str) -> int:
        task = self._tasks.get(name)
        return len(task.instances[0].filtered_resps) if task is not None and task.instances else 1


def _choices(task: Any, doc: Any, results: Sequence[Any]) -> dict[str, str]:
    """The answer to one question by each metric that chooses one; empty if there is none."""
    try:
        return dict(_chosen(task, doc, results))
    except Exception:  # a task's own code, with results of another form: the score still counts
        return {}


def _chosen(task: Any, doc: Any, results: Sequence[Any]) -> Iterator[tuple[str, str]]:
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = task.doc_to_choice(doc) if hasattr(task, "doc_to_choice") else doc["choices"]
        # With acc_mutual_info, likelihoods without the question follow.
        likelihoods = np.array([likelihood for likelihood, _ in results[: len(choices)]])
        yield "", str(int(likelihoods.argmax()))
        for metric, sizes in (
            ("acc_norm", [len(choice) for choice in choices]),
            ("acc_bytes", [len(choice.encode()) for choice in choices]),
        ):
            with np.errstate(all="ignore"):  # an empty choice
                yield metric, str(int((likelihoods / np.array(sizes, dtype=float)).argmax()))
    elif task.OUTPUT_TYPE == "loglikelihood":
        [(_, is_likeliest)] = results
        yield "", str(int(is_likeliest))
    elif task.OUTPUT_TYPE == "generate_until":
        yield "", hashlib.sha256(str(results[0]).encode()).hexdigest()[:DIGITS]


def _is_truth(score: Any) -> bool:
    return isinstance(score, bool | int | float | np.number | np.bool_) and score in {0, 1}
