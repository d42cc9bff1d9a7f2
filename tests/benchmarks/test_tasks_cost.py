"""Tasks against lm-eval's own wrapper of the model: the same answers, and how much of its time."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

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
ROUNDS = 3

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
    if not DATA.is_dir():
        pytest.skip(f"the data is not there: {DATA}")
    loaded = smollm2()
    spent = 0.0
    ours, theirs = TreeScoringLM._loglikelihood_tokens, HFLM._loglikelihood_tokens

    def timed(way):
        def run(self, *given, **named):
            nonlocal spent
            begun = time.perf_counter()
            found = way(self, *given, **named)
            spent += time.perf_counter() - begun
            return found

        return run

    ratios, flips = [], {}
    for _ in range(ROUNDS):
        seconds, results = {}, {}
        for name, way in (("trees", ours), ("lm-eval", theirs)):
            monkeypatch.setattr(TreeScoringLM, "_loglikelihood_tokens", timed(way))
            spent = 0.0
            specs = [spec(task, limit, shots) for task in tasks]
            results[name] = evaluate_tasks(loaded.model, loaded.tokenizer, specs)
            seconds[name] = spent
        ratios.append(seconds["trees"] / seconds["lm-eval"])
        for one, other in zip(results["trees"], results["lm-eval"], strict=True):
            pairs = zip(one.answers.split(), other.answers.split(), strict=True)
            flips[one.task] = [at for at, (mine, plain) in enumerate(pairs) if mine != plain]
    others = sum(map(len, flips.values()))
    print(f"other answers: {flips}")
    figure(
        f"{', '.join(tasks)}; {shots} examples / lm-eval",
        f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}); other answers: {others} of"
        f" {limit * len(tasks)}",
        f"at most {most}",
    )
    assert others <= 1  # a near-tie
    assert median(ratios) <= most
