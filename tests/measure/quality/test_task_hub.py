"""Tasks whose rows come from the hub: a server on this machine that answers and fails as it does."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hub_server import HubServer, Repository
from prunebench.errors import PrunebenchError
from prunebench.experiment.measures import TaskSpec
from prunebench.measure.quality.task_index import task_index
from prunebench.measure.quality.tasks import evaluate_tasks
from prunebench.record.quality import TaskResult
from tiny import tiny_model, tiny_tokenizer


def parquet(**columns: list) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def piqa_files(count: int) -> dict[str, bytes]:
    rows = parquet(
        goal=[f"open jar {n}" for n in range(count)],
        sol1=["twist the lid"] * count,
        sol2=["eat it"] * count,
        label=[0] * count,
    )
    splits = {f"data/{split}-00000-of-00001.parquet": rows for split in ("train", "validation")}
    return {"README.md": b"---\nlicense: mit\n---\n", **splits}


@pytest.fixture
def piqa(hub: HubServer, tmp_path, monkeypatch) -> Repository:
    from datasets import config
    from huggingface_hub import HfFileSystem

    monkeypatch.setattr(config, "HF_ENDPOINT", hub.url)
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(config, "DOWNLOADED_DATASETS_PATH", tmp_path / "datasets" / "downloads")
    HfFileSystem.clear_instance_cache()
    return hub.repository("baber/piqa", piqa_files(3), kind="datasets")


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture
def evaluate(model):
    def run() -> TaskResult:
        spec = TaskSpec(name="piqa", harness=task_index().version)
        [result] = evaluate_tasks(model, tiny_tokenizer(), [spec])
        return result

    return run


def test_all_cells_see_the_rows_of_one_commit_without_asking_again(hub, piqa, evaluate):
    first = evaluate()
    assert (first.samples, first.data, first.data_commit) == (3, "hub", piqa.refs["main"])
    piqa.commit(piqa_files(5))
    hub.requests.clear()
    assert evaluate() == first
    assert not hub.requests


@pytest.mark.parametrize(
    ("access", "token", "message", "hint"),
    [
        ("gated", None, "data set 'baber/piqa' is gated", "/datasets/baber/piqa, then set HF_TOK"),
        ("gated", "hf_other", "the token that is set has no access", "with the account"),
        ("private", None, "data set 'baber/piqa' is not on the hub", "set HF_TOKEN"),
    ],
)
def test_a_data_set_that_is_not_for_everybody_is_one_error(
    piqa, evaluate, monkeypatch, access, token, message, hint
):
    piqa.access = access
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PrunebenchError, match=message) as caught:
        evaluate()
    assert hint in caught.value.hint
    piqa.members.add("hf_member")
    monkeypatch.setenv("HF_TOKEN", "hf_member")
    assert evaluate().samples == 3


def test_a_hub_that_asks_for_minutes_is_an_error_that_says_how_many(hub, piqa, evaluate):
    hub.refuse("/", 429, times=1000, retry_after="300")
    with pytest.raises(
        PrunebenchError, match=r"'baber/piqa': the hub .* too many requests"
    ) as caught:
        evaluate()
    assert "in 300 s" in caught.value.hint


def test_a_hub_that_does_not_answer_is_given_up(hub, piqa, evaluate, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.2)
    with hub.hold("/api/datasets"), pytest.raises(PrunebenchError, match=r"within 0\.2 s"):
        evaluate()


def test_without_a_hub_the_other_sources_are_named(piqa, evaluate, closed_port, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port}")
    with pytest.raises(PrunebenchError, match="'baber/piqa' is not cached: cannot reach") as caught:
        evaluate()
    assert "zeroshot-assets" in caught.value.hint


def test_rows_that_cannot_be_read_are_named(piqa, evaluate):
    broken = {name: b"not parquet" for name in piqa_files(1) if name.endswith(".parquet")}
    piqa.commit(broken)
    with pytest.raises(PrunebenchError, match="data set 'baber/piqa' cannot be read"):
        evaluate()


def test_a_cut_connection_is_opened_again(hub, piqa, evaluate):
    hub.cut("/cdn/", after=100)
    assert evaluate().samples == 3
