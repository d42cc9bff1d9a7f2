"""lm-eval's tasks on a model in memory: scores, restored state, errors."""

from __future__ import annotations

import logging
import math
import os
import random
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from prunebench.errors import PrunebenchError
from prunebench.measure.quality.task_data import TaskData
from prunebench.measure.quality.task_index import task_index
from prunebench.measure.quality.task_results import SEEDS
from prunebench.measure.quality.tasks import evaluate_tasks
from task_folder import arc_rows, mmlu_rows, spec, task_folder, write
from tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return task_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", max_position_embeddings=512)


def by_hand(model, rows) -> tuple[float, float]:
    """(accuracy, standard error) of the likeliest continuations, computed independently."""
    tokenizer = tiny_tokenizer()
    right = []
    for row in rows:
        prompt = f"Question: {row['question']}\nAnswer:"
        start = len(tokenizer.encode(prompt))
        scores = []
        for choice in row["choices"]["text"]:
            ids = torch.tensor([tokenizer.encode(f"{prompt} {choice}")])
            likely = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
            scores.append(likely[start - 1 :].sum().item())
        right.append(scores.index(max(scores)) == row["choices"]["label"].index(row["answerKey"]))
    share = sum(right) / len(right)
    return share, math.sqrt(share * (1 - share) / (len(right) - 1))


@pytest.mark.parametrize("limit", [None, 8])
def test_scores_are_those_of_an_independent_computation(model, folder, limit):
    (result,) = evaluate_tasks(
        model, tiny_tokenizer(), [spec("arc_easy", folder, limit=limit, batch_size=3)]
    )
    share, stderr = by_hand(model, arc_rows(30)[:limit])
    assert 0 < share < 1
    assert (result.value, result.stderr) == pytest.approx((share, stderr), rel=1e-12)
    assert (result.samples, result.samples_total) == (limit or 30, 30)
    assert (result.headline, result.num_fewshot, result.version) == ("acc", 0, "1.0")
    assert [metric.metric for metric in result.metrics] == ["acc", "acc_norm"]
    assert result.asked
    assert result.seeds == SEEDS
    assert result.harness == task_index().version


def test_several_tasks_progress_and_the_papers_headline(model, folder):
    seen: list[tuple[int, int]] = []
    results = evaluate_tasks(
        model,
        tiny_tokenizer(),
        [spec("hellaswag", folder), spec("arc_easy", folder, limit=2)],
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [(one.task, one.headline) for one in results] == [
        ("hellaswag", "acc_norm"),
        ("arc_easy", "acc"),
    ]
    assert seen == sorted(seen)
    assert len(seen) > 40
    assert seen[-1] == (2000, 2000)


def test_shots_are_drawn_from_the_train_split_by_a_fixed_seed(model, folder):
    first, again = (
        evaluate_tasks(model, tiny_tokenizer(), [spec("arc_easy", folder, num_fewshot=2)])[0]
        for _ in range(2)
    )
    assert first == again
    assert first.num_fewshot == 2


def test_a_group_gives_its_parts_and_its_aggregate(model, tmp_path):
    leaves = task_index().leaves("mmlu_stem")
    subjects = [leaf.removeprefix("mmlu_") for leaf in leaves]
    rows = mmlu_rows(subjects, 2) + mmlu_rows(subjects[:1], 4)
    write(tmp_path / "mmlu" / "test.parquet", rows)
    whole, *parts = evaluate_tasks(model, tiny_tokenizer(), [spec("mmlu_stem", tmp_path)])
    assert (whole.task, whole.aggregate, whole.asked, whole.samples) == (
        "mmlu_stem",
        True,
        True,
        len(rows),
    )
    assert {part.task for part in parts} == set(leaves)
    assert {(part.group, part.asked, part.aggregate) for part in parts} == {
        ("mmlu_stem", False, False)
    }
    assert {part.samples for part in parts} == {2, 6}
    assert whole.value == pytest.approx(
        sum(part.value * part.samples for part in parts) / len(rows)
    )


def test_a_tag_is_its_tasks(model, folder, tmp_path):
    write(tmp_path / "arc_easy" / "test.jsonl", arc_rows(5))
    write(tmp_path / "arc_challenge" / "test.jsonl", arc_rows(5, seed=5))
    results = evaluate_tasks(model, tiny_tokenizer(), [spec("ai2_arc", tmp_path)])
    assert [(one.task, one.asked) for one in results] == [
        ("arc_challenge", True),
        ("arc_easy", True),
    ]


class Rows(TaskData):
    name = "rows"
    summary = "rows"
    licence = "none"
    tasks = ("arc_easy",)

    def splits(self, task):
        return {"test": arc_rows(30)}


def test_registered_data_gives_the_same_scores_as_files(model, folder):
    files = evaluate_tasks(model, tiny_tokenizer(), [spec("arc_easy", folder)])
    found = evaluate_tasks(
        model, tiny_tokenizer(), [spec("arc_easy", data="rows")], data={"rows": Rows()}
    )
    assert found[0].metrics == files[0].metrics
    assert found[0].data == "rows"


@pytest.mark.parametrize("namesake", ["allenai/ai2_arc", "ai2_arc.py", None])
def test_a_namesake_of_a_data_set_in_the_working_folder_is_not_taken_for_it(
    model, tmp_path, monkeypatch, namesake
):
    import datasets

    monkeypatch.chdir(tmp_path)
    if namesake is not None:
        (tmp_path / namesake).mkdir(parents=True)
    folders = []

    def load_dataset(path, **_):
        folders.append((path, Path.cwd()))
        raise OSError("no hub in this test")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(PrunebenchError, match="'allenai/ai2_arc' is not cached"):
        evaluate_tasks(model, tiny_tokenizer(), [spec("arc_easy")])
    [(path, where)] = folders
    assert path == "allenai/ai2_arc"
    assert not (where / (namesake or "x")).exists()
    # Without a namesake the folder stays: a cache may have a relative path.
    assert (where == tmp_path) == (namesake is None)
    assert Path.cwd() == tmp_path


def test_nothing_is_left_behind(model, folder, tmp_path, monkeypatch):
    import datasets

    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    monkeypatch.chdir(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002 - the global generators are what lm-eval seeds
    torch.manual_seed(7)
    numpys = np.random.get_state()[1].copy()  # noqa: NPY002
    before = random.getstate(), numpys, torch.get_rng_state()
    state = dict(os.environ), logging.getLogger().level, list(logging.getLogger().handlers)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate_tasks(model, tokenizer, [spec("hellaswag", folder)])
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])
    assert (
        dict(os.environ),
        logging.getLogger().level,
        list(logging.getLogger().handlers),
    ) == state
    assert tokenizer.pad_token is None
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert [path for path in tmp_path.rglob("*") if path.name != "tmp"] == []


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (lambda folder: spec("no_such_task"), "knows no task 'no_such_task'"),
        (lambda folder: spec("boolq", folder), "has no files of it"),
        (
            lambda folder: spec("hellaswag", folder, num_fewshot=1),
            "no split 'train', which the examples of 1-shot",
        ),
        (lambda folder: spec("arc_easy", data="gone"), "no plugin registers the data 'gone'"),
        (lambda folder: spec("boolq", data="rows"), "has no task 'boolq'"),
    ],
    ids=["unknown task", "no files", "no examples", "unknown data", "not in the data"],
)
def test_faults_are_named(model, folder, wanted, message):
    with pytest.raises(PrunebenchError, match=message):
        evaluate_tasks(model, tiny_tokenizer(), [wanted(folder)], data={"rows": Rows()})


def test_a_scored_split_that_is_missing_or_damaged_is_named(model, tmp_path):
    write(tmp_path / "arc_easy" / "validation.jsonl", arc_rows(3))
    with pytest.raises(PrunebenchError, match="no split 'test', which is scored"):
        evaluate_tasks(model, tiny_tokenizer(), [spec("arc_easy", tmp_path)])
    (tmp_path / "arc_easy" / "test.parquet").write_text("no Parquet")
    with pytest.raises(PrunebenchError, match=r"test\.parquet: not a valid Parquet file"):
        evaluate_tasks(model, tiny_tokenizer(), [spec("arc_easy", tmp_path)])


def test_a_model_that_overflows_is_no_score(folder):
    broken = tiny_model("llama", max_position_embeddings=512)
    broken.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(PrunebenchError, match="not a number"):
        evaluate_tasks(broken, tiny_tokenizer(), [spec("arc_easy", folder)])


def test_a_model_without_an_attention_is_scored(folder):
    from prunebench import Block, Context

    model = tiny_model("llama", max_position_embeddings=512)
    context = Context(calibration=None, seed=0, kept_layers=[0, 1, 2, 3])
    context.remove_blocks(model, [Block(1, "attention")])
    (result,) = evaluate_tasks(model, tiny_tokenizer(), [spec("arc_easy", folder, limit=6)])
    assert result.value == by_hand(model, arc_rows(30)[:6])[0]
