"""Tasks against lm-eval's own wrapper of the model: the same answers, and how much of its time."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from lm_eval.models.huggingface import HFLM

from prunebench.experiment.measures import TaskDataRef, TaskSpec
from prunebench.measure.quality.task_data import task_files
from prunebench.measure.quality.task_index import task_index
from prunebench.measure.quality.tasks import evaluate_tasks
from prunebench.measure.quality.tree_scoring import TreeScoringLM
from smollm2 import smollm2

pytestmark = pytest.mark.bench

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SEVEN = ("boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")

# Tasks, questions of each, examples before each question, part of lm-eval's time at most
MIXES = [
    (SEVEN, 40, 0, 0.5),
    (("arc_easy", "hellaswag"), 12, 5, 0.35),  # choices of several tokens
    (("mmlu_anatomy",), 12, 5, 0.35),  # choices of one token, which lm-eval runs together too
]


def spec(task: str, limit: int, shots: int) -> TaskSpec:
    index = task_index()
    files = task_files(DATA, task, index.family(task))
    return TaskSpec(
        name=task,
        data=TaskDataRef(
            name="data",
            path=str(DATA),
            files={path.relative_to(DATA).as_posix(): "" for path in files},
        ),
        limit=limit,
        num_fewshot=shots,
        harness=index.version,
        batch_size=8,
    )


@pytest.mark.parametrize(("tasks", "limit", "shots", "most"), MIXES)
def test_part_of_the_time_of_lm_eval(tasks, limit, shots, most, monkeypatch, figure) -> None:
    """Of each task the same requests go through both ways; which is first alternates."""
    if not DATA.is_dir():
        pytest.skip(f"the data is not there: {DATA}")
    loaded = smollm2()
    trees, plain = TreeScoringLM._loglikelihood_tokens, HFLM._loglikelihood_tokens
    seconds: dict[str, list[float]] = defaultdict(list)
    of_lm_eval: list[tuple[Any, Any]] = []  # requests and answers

    def timed(way: Any, name: str, *given: Any, **named: Any) -> Any:
        begun = time.perf_counter()
        found = way(*given, **named)
        seconds[name].append(time.perf_counter() - begun)
        return found

    def in_turns(self: Any, requests: Any, **named: Any) -> Any:
        ways = {"trees": trees, "lm-eval": plain}
        order = list(ways) if len(of_lm_eval) % 2 else list(reversed(ways))
        found = {name: timed(ways[name], name, self, requests, **named) for name in order}
        of_lm_eval.append((requests, found["lm-eval"]))
        return found["trees"]

    def again(self: Any, requests: Any, **_: Any) -> Any:
        del self
        same, answers = of_lm_eval.pop(0)
        assert requests == same
        return answers

    def results(way: Any) -> list[list[str]]:
        monkeypatch.setattr(TreeScoringLM, "_loglikelihood_tokens", way)
        specs = [spec(task, limit, shots) for task in tasks]
        found = evaluate_tasks(loaded.model, loaded.tokenizer, specs)
        return [one.answers.split() for one in found]

    ours, theirs = results(in_turns), results(again)
    flips = {
        task: [at for at, (one, other) in enumerate(zip(*pair, strict=True)) if one != other]
        for task, *pair in zip(tasks, ours, theirs, strict=True)
    }
    others = sum(map(len, flips.values()))
    each = [mine / whole for mine, whole in zip(seconds["trees"], seconds["lm-eval"], strict=True)]
    ratio = sum(seconds["trees"]) / sum(seconds["lm-eval"])
    print(f"other answers: {flips}; ratios: {dict(zip(tasks, each, strict=True))}")
    figure(
        f"{', '.join(tasks)}; {shots} examples / lm-eval",
        f"{ratio:.2f} (by task {min(each):.2f} to {max(each):.2f}); other answers: {others} of"
        f" {limit * len(tasks)}",
        f"at most {most}",
    )
    assert others <= 1  # a near-tie
    assert ratio <= most
