"""How likely a model finds each choice of the multiple-choice questions that lm-eval asked it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class ChoiceScores(NamedTuple):
    """What a model makes of one question."""

    nll: tuple[float, ...]
    """-ln p of each choice after the question, mean over its tokens: ln of its perplexity."""
    correct: bool
    """Whether the task's headline metric counts its answer as right."""


def choice_scores(lm: Any, task: Any, correct: str | None) -> list[ChoiceScores] | None:
    """The scores of every question of a task that ``lm`` has answered, in their order.

    ``correct``: as `TaskResult` has it. None if the task is not a multiple choice, or if nobody
    knows which answers are right.
    """
    if correct is None or task is None or task.OUTPUT_TYPE != "multiple_choice":
        return None
    asked: dict[int, list[Any]] = {}
    for request in sorted(task.instances, key=lambda one: (one.doc_id, one.idx)):
        asked.setdefault(request.doc_id, []).append(request)
    return [
        ChoiceScores(tuple(_nll(lm, one) for one in _of_choices(task, requests)), right == "1")
        for requests, right in zip(asked.values(), correct, strict=True)
    ]


def _of_choices(task: Any, requests: Sequence[Any]) -> Sequence[Any]:
    """The requests for the choices after the question; with acc_mutual_info others follow."""
    doc: Mapping[str, Any] = requests[0].doc
    choices = task.doc_to_choice(doc) if hasattr(task, "doc_to_choice") else doc["choices"]
    return requests[: len(choices)]


def _nll(lm: Any, request: Any) -> float:
    likelihood, _ = request.resps[0]
    _, tokens = lm._encode_pair(*request.args)
    return -float(likelihood) / max(1, len(tokens))
