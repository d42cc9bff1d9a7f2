"""Tasks in which the model writes its answers, on rows from a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from prunebench.experiment.measures import TaskDataRef, TaskSpec
from prunebench.measure.quality.task_index import task_index
from prunebench.measure.quality.tasks import evaluate_tasks
from tiny import tiny_model, tiny_tokenizer

COUNT = 6


def rows(start: int, count: int) -> list[dict[str, str]]:
    return [
        {"question": f"What is {n} plus {n}?", "answer": f"{n} + {n} = {2 * n}\n#### {2 * n}"}
        for n in range(start, start + count)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "data" / "gsm8k"
    place.mkdir(parents=True)
    for split, given in {"train": rows(20, 8), "test": rows(1, COUNT)}.items():
        lines = "".join(json.dumps(row) + "\n" for row in given)
        (place / f"{split}.jsonl").write_text(lines)
    return place.parent


def spec(folder: Path, **more) -> TaskSpec:
    files = {f"gsm8k/{split}.jsonl": "" for split in ("test", "train")}
    data = TaskDataRef(name="data", path=str(folder), files=files)
    return TaskSpec(name="gsm8k", data=data, harness=task_index().version, num_fewshot=2, **more)


@pytest.fixture
def model():
    return tiny_model("llama", max_position_embeddings=1024).eval()


def test_written_answers_are_scored_and_marked_as_generation(model, folder):
    (result,) = evaluate_tasks(model, tiny_tokenizer(), [spec(folder, max_new_tokens=4)])
    assert result.generative is True
    assert (result.samples, result.num_fewshot, result.headline) == (COUNT, 2, "exact_match")
    assert result.value == 0  # random weights know no sums


def test_the_length_of_answers_is_bounded(model, folder, monkeypatch):
    lengths = []
    generate = model.generate

    def noting(*given, **words):
        tokens = words.get("input_ids", given[0] if given else None)
        found = generate(*given, **words)
        lengths.append(found.shape[1] - tokens.shape[1])
        assert words.get("use_cache", True)
        return found

    monkeypatch.setattr(model, "generate", noting)
    evaluate_tasks(model, tiny_tokenizer(), [spec(folder, max_new_tokens=3, batch_size=3)])
    assert lengths
    assert max(lengths) <= 3
    assert len(lengths) == COUNT / 3  # batches, not one question after the other


def test_a_model_that_writes_the_right_answers_gets_them_right(model, folder, monkeypatch):
    tokenizer = tiny_tokenizer()

    def answering(input_ids, **_):
        width = 0
        written = []
        for one in input_ids:
            question = tokenizer.decode(one).rpartition("What is ")[2]
            n = int(question.split()[0])
            written.append(tokenizer.encode(f" #### {2 * n}\n\nQuestion:"))
            width = max(width, len(written[-1]))
        rest = torch.tensor([each + [0] * (width - len(each)) for each in written])
        return torch.cat([input_ids, rest], dim=1)

    monkeypatch.setattr(model, "generate", answering)
    (result,) = evaluate_tasks(model, tokenizer, [spec(folder)])
    assert result.value == 1


def test_a_bound_of_answers_is_a_setting_of_its_own_and_its_absence_none(folder):
    assert "max_new_tokens" not in spec(folder).identity()
    assert spec(folder, max_new_tokens=3).identity()["max_new_tokens"] == 3
