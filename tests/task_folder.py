"""Small data sets in the schema of lm-eval's tasks, and a folder of them."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prunebench.experiment.measures import TaskDataRef, TaskSpec
from prunebench.measure.quality.task_data import task_files
from prunebench.measure.quality.task_index import task_index

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "and",
    "an",
    "old",
    "tree",
    "was",
    "tall",
]


def arc_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Questions with three or four choices, like those of ARC."""
    draw = random.Random(seed)

    def words(number: int) -> str:
        return " ".join(draw.choices(WORDS, k=number))

    rows = []
    for number in range(count):
        size = draw.choice([3, 4])
        labels = list("ABCD"[:size])
        choices = {"text": [words(draw.randint(1, 4)) for _ in labels], "label": labels}
        row = {
            "id": str(number),
            "question": words(6),
            "choices": choices,
            "answerKey": draw.choice(labels),
        }
        rows.append(row)
    return rows


def hellaswag_rows(count: int) -> list[dict[str, Any]]:
    rows = []
    for number, row in enumerate(arc_rows(count, seed=1)):
        endings = (row["choices"]["text"] * 2)[:4]
        rows.append(
            {
                "activity_label": "Fox",
                "ctx_a": row["question"],
                "ctx_b": "a dog",
                "endings": endings,
            }
            | {"label": str(number % 4)}
        )
    return rows


def mmlu_rows(subjects: list[str], each: int) -> list[dict[str, Any]]:
    rows = []
    for number, row in enumerate(arc_rows(each * len(subjects), seed=2)):
        choices = (row["choices"]["text"] * 2)[:4]
        subject = subjects[number // each]
        rows.append(
            {
                "question": row["question"],
                "subject": subject,
                "choices": choices,
                "answer": number % 4,
            }
        )
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if path.name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(lines)
    return path


def task_folder(folder: Path) -> Path:
    """ARC-easy with few-shot examples, HellaSwag without."""
    write(folder / "arc_easy" / "test.parquet", arc_rows(30))
    write(folder / "arc_easy" / "train_head10.jsonl.gz", arc_rows(10, seed=3))
    write(folder / "hellaswag" / "validation.jsonl", hellaswag_rows(12))
    return folder


def spec(name: str, folder: Path | None = None, data: str = "hub", **more: Any) -> TaskSpec:
    """A task of lm-eval, on the rows of a folder if that is given."""
    ref = TaskDataRef(name=data)
    if folder is not None:
        index = task_index()
        files = {
            f for leaf in index.leaves(name) for f in task_files(folder, leaf, index.family(leaf))
        }
        names = {path.relative_to(folder).as_posix(): "" for path in sorted(files)}
        ref = TaskDataRef(name=folder.name, path=str(folder), files=names)
    return TaskSpec(name=name, data=ref, harness=task_index().version, **more)
