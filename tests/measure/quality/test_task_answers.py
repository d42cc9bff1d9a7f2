"""Answers question by question: the same that the scores are made of, for every kind of task."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prunebench.measure.quality import task_answers
from prunebench.measure.quality.task_answers import AnswerLog
from prunebench.measure.quality.task_index import task_index
from prunebench.measure.quality.task_scores import Flips, flips
from prunebench.measure.quality.tasks import evaluate_tasks
from prunebench.record.quality import Quality, TaskResult
from task_folder import arc_rows, mmlu_rows, spec, task_folder, write
from tiny import tiny_model, tiny_tokenizer


def likeliest(model, rows: list[dict[str, Any]]) -> list[int]:
    """The choice with the highest likelihood for each question of ARC, computed independently."""
    tokenizer, found = tiny_tokenizer(), []
    for row in rows:
        prompt = f"Question: {row['question']}\nAnswer:"
        start, scores = len(tokenizer.encode(prompt)), []
        for choice in row["choices"]["text"]:
            ids = torch.tensor([tokenizer.encode(f"{prompt} {choice}")])
            likely = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
            scores.append(likely[start - 1 :].sum().item())
        found.append(scores.index(max(scores)))
    return found


def model_of(seed: int):
    return tiny_model("llama", seed, max_position_embeddings=512)


def test_answers_are_the_likeliest_choices_and_add_up_to_the_score(tmp_path) -> None:
    folder, rows = task_folder(tmp_path), arc_rows(30)
    one, other = (
        evaluate_tasks(model_of(seed), tiny_tokenizer(), [spec("arc_easy", folder)])[0]
        for seed in (0, 1)
    )
    answers = likeliest(model_of(0), rows)
    assert one.answers == " ".join(map(str, answers))
    gold = [row["choices"]["label"].index(row["answerKey"]) for row in rows]
    assert one.correct == "".join(
        str(int(mine == right)) for mine, right in zip(answers, gold, strict=True)
    )
    assert one.correct.count("1") / 30 == one.value
    theirs = likeliest(model_of(1), rows)
    assert 0 < sum(map(int.__ne__, answers, theirs)) < 30
    found = flips([other], [one])
    assert found.answers == sum(map(int.__ne__, answers, theirs)) / 30
    assert (
        found.correct
        == sum(
            (mine == right) != (their == right)
            for mine, their, right in zip(answers, theirs, gold, strict=True)
        )
        / 30
    )
    assert flips([one], [one]) == Flips(0.0, 0.0)


def test_the_normalised_answer_belongs_to_the_normalised_score(tmp_path) -> None:
    (one,) = evaluate_tasks(
        model_of(0), tiny_tokenizer(), [spec("hellaswag", task_folder(tmp_path))]
    )
    assert one.headline == "acc_norm"
    assert one.correct.count("1") / one.samples == pytest.approx(one.value)
    assert [int(answer) for answer in one.answers.split()] != []
    assert [
        str(int(int(answer) == number % 4)) for number, answer in enumerate(one.answers.split())
    ] == list(one.correct)


def test_a_group_has_the_answers_of_its_parts(tmp_path) -> None:
    leaves = task_index().leaves("mmlu_stem")
    subjects = [leaf.removeprefix("mmlu_") for leaf in leaves]
    write(tmp_path / "mmlu" / "test.parquet", mmlu_rows(subjects, 2))
    found = [
        Quality(
            perplexity=[],
            tasks=evaluate_tasks(model_of(seed), tiny_tokenizer(), [spec("mmlu_stem", tmp_path)]),
        )
        for seed in (0, 1)
    ]
    whole = found[0].tasks[0]
    assert whole.answers is None
    parts, dense = (one.parts(one.tasks[0]) for one in found)
    assert [part.task for part in parts] == sorted(leaves)
    ours, theirs = (" ".join(part.answers for part in one).split() for one in (parts, dense))
    assert len(ours) == 2 * len(leaves)
    assert flips(parts, dense).answers == sum(map(str.__ne__, ours, theirs)) / len(ours)


class FakeTask:
    """A task as far as an `AnswerLog` sees it."""

    def __init__(self, kind: str, filters: int = 1) -> None:
        self.OUTPUT_TYPE = kind
        resps = dict.fromkeys(map(str, range(filters)))
        self.instances = [SimpleNamespace(filtered_resps=resps)]

    def doc_to_choice(self, doc: Any) -> list[str]:
        return doc["choices"]

    def process_results(self, doc: Any, results: Any) -> dict[str, Any]:
        return {"acc": doc.get("right", 1.0)}


def answers_of(task: FakeTask, *questions: tuple[Any, Any], metric: str = "acc") -> Any:
    log = AnswerLog({"task": task})
    for doc, results in questions:
        assert task.process_results(doc, results) == {"acc": doc.get("right", 1.0)}
    return log.of("task", metric)


def test_mutual_information_leaves_the_answer_alone() -> None:
    doc = {"choices": ["a", "b"]}
    results = [(-1.0, False), (-2.0, False), (-9.0, False), (0.0, False)]
    assert answers_of(FakeTask("multiple_choice"), (doc, results)) == ("0", "1")


@pytest.mark.parametrize(("metric", "answer"), [("acc", "0"), ("acc_norm", "1"), ("f1", "0")])
def test_length_changes_the_answer_of_the_normalised_metric(metric: str, answer: str) -> None:
    doc = {"choices": ["a", "longer"]}
    found = answers_of(
        FakeTask("multiple_choice"), (doc, [(-1.0, False), (-2.0, False)]), metric=metric
    )
    assert found[0] == answer


def test_written_answers_are_hashed_and_the_first_filter_counts() -> None:
    task = FakeTask("generate_until", filters=2)
    texts = ["42", "a long answer", "42", "7"]
    answers, right = answers_of(task, *(({}, [text]) for text in texts))
    first, second = answers.split()
    assert len(first) == task_answers.DIGITS
    assert first != second
    assert answers == answers_of(FakeTask("generate_until"), ({}, ["42"]), ({}, [texts[1]]))[0]
    assert right == "11"


def test_the_wanted_word_is_likeliest_or_not() -> None:
    task = FakeTask("loglikelihood")
    found = answers_of(task, ({"right": 1}, [(-1.0, True)]), ({"right": 0}, [(-3.0, False)]))
    assert found == ("1 0", "10")


def test_scores_that_are_no_truths_and_broken_tasks_have_no_answers() -> None:
    task = FakeTask("loglikelihood_rolling")
    assert answers_of(task, ({"right": (-5.0, 7)}, [-5.0])) == (None, None)
    assert answers_of(FakeTask("multiple_choice"), ({}, [(-1.0, False)])) == (None, "1")
    assert AnswerLog({}).of("a group", "acc") == (None, None)


def test_the_answers_of_a_very_large_task_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_answers, "MOST_QUESTIONS", 2)
    question = ({}, ["1"])
    assert answers_of(FakeTask("generate_until"), question, question)[1] == "11"
    assert answers_of(FakeTask("generate_until"), *[question] * 3) == (None, None)


def result(task: str, answers: str | None, correct: str | None = None) -> TaskResult:
    return TaskResult(
        task=task,
        asked=True,
        data="hub",
        num_fewshot=0,
        version=None,
        samples=3,
        samples_total=3,
        metrics=[],
        headline="acc",
        seeds={},
        harness="0",
        answers=answers,
        correct=correct,
    )


@pytest.mark.parametrize(
    ("mine", "dense", "expected"),
    [
        ([result("a", "0 1 2", "101")], [result("a", "0 2 1", "100")], Flips(2 / 3, 1 / 3)),
        ([result("a", None, "10")], [result("a", "0 1", "11")], Flips(None, 0.5)),
        ([result("a", "0 1")], [result("b", "0 1")], Flips(None, None)),
        ([result("a", "0 1")], [result("a", "0 1 1")], Flips(None, None)),
        ([result("a", "0")], [], Flips(None, None)),
        ([], [], Flips(None, None)),
        (
            [result("a", "0"), result("b", "1 1 1")],
            [result("a", "1"), result("b", "1 1 0")],
            Flips(0.5, None),
        ),
    ],
)
def test_flips_are_shares_of_the_same_questions(
    mine: list[TaskResult], dense: list[TaskResult], expected: Flips
) -> None:
    assert flips(mine, dense) == expected
