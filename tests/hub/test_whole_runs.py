"""`run`, `plan` and `prune` take models, corpora and tasks from a hub on this machine."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hub_server import HubServer, Repository
from prunebench.model.folder import read_checkpoint
from prunebench.record.record import Record
from prunebench.store.run_folder import RunStore
from prunebench_plugins import hub_corpora
from tiny import tiny_checkpoint

pytestmark = pytest.mark.hub

CORPORA = {corpus.name: corpus for corpus in hub_corpora.prunebench_register_corpus()}
TEXTS = [
    f"the quick brown fox number {n} jumps over a lazy dog, then it rests under tree {n % 7}. " * 9
    for n in range(60)
]
SUITE: dict[str, Any] = {
    "name": "hub",
    "models": ["org/tiny"],
    "methods": ["dense", {"wanda": {"sparsity": 0.5}}],
    "calibration": {"corpus": "c4", "windows": 2, "length": 32},
    "quality": {
        "perplexity": [{"corpus": list(CORPORA), "windows": 2, "length": 32}],
        "tasks": [{"task": "piqa"}],
    },
    "profile": None,
    "device": "cpu",
    "threads": 1,
}


def parquet(**columns: list[Any]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def corpus_file(name: str, column: str) -> bytes:
    if name.endswith(".json"):
        rows = [{"instruction": text, "input": "", "output": text} for text in TEXTS]
        return json.dumps(rows).encode()
    if name.endswith(".gz"):
        return gzip.compress("".join(json.dumps({column: text}) + "\n" for text in TEXTS).encode())
    return parquet(**{column: TEXTS})


def piqa_files() -> dict[str, bytes]:
    rows = parquet(
        goal=["open a jar", "boil water", "cut wood"],
        sol1=["twist the lid", "use heat", "use a saw"],
        sol2=["eat it", "use ice", "use a spoon"],
        label=[0, 0, 0],
    )
    splits = {f"data/{split}-00000-of-00001.parquet": rows for split in ("train", "validation")}
    return {"README.md": b"---\nlicense: mit\n---\n", **splits}


@dataclass
class Desk:
    """A working folder, and the command line with a hub and a cache of its own."""

    hub: HubServer
    folder: Path
    model: Repository
    files: dict[str, bytes]
    environment: dict[str, str] = field(default_factory=dict)

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "prunebench", *arguments],
            cwd=self.folder,
            env=os.environ | self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=250,
        )

    def write(self, **changes: Any) -> None:
        (self.folder / "s.yaml").write_text(json.dumps(SUITE | changes))

    def records(self, run: str = "runs/hub") -> dict[str, Record]:
        store = RunStore.open(self.folder / run)
        found, damaged = store.records(store.read_plan().cells)
        assert not damaged
        return {record.cell.method.name: record for record in found}

    def commit(self) -> str:
        """Move `main` of the model to a new commit with the same weights."""
        settings = f'{{"top_k": {len(self.model.commits)}}}'.encode()
        return self.model.commit(self.files | {"generation_config.json": settings})


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    folder = tiny_checkpoint(tmp_path / "origin" / "tiny")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with HubServer() as hub:
        for corpus in CORPORA.values():
            made = hub.repository(corpus.repository, kind="datasets")
            content = {name: corpus_file(name, corpus.column) for name in corpus.files.values()}
            if len(corpus.revision) == 40:
                made.pin(corpus.revision, content)
            else:
                made.commit(content, corpus.revision)
        hub.repository("baber/piqa", piqa_files(), kind="datasets")
        (tmp_path / "desk").mkdir()
        desk = Desk(hub, tmp_path / "desk", hub.repository("org/tiny", files), files)
        desk.environment = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_ETAG_TIMEOUT": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "1",
            "HF_TOKEN": "",
            "NO_PROXY": "127.0.0.1",
        }
        yield desk


def test_a_model_every_corpus_and_a_task_come_from_the_hub_once(desk: Desk) -> None:
    desk.write()
    first = desk.model.refs["main"]
    done = desk("run", "s.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    for record in desk.records().values():
        assert record.quality is not None
        assert [one.corpus for one in record.quality.perplexity] == list(CORPORA)
        [task] = record.quality.tasks
        assert (task.task, task.samples) == ("piqa", 3)
        assert task.data_commit == desk.hub.repositories["datasets", "baber/piqa"].refs["main"]
        assert record.provenance["model_revision"] == first
        parquet = "refs/convert/parquet"
        assert record.provenance["unpinned"] == {
            "model org/tiny at main": first,
            **{
                f"corpus {name} at {parquet}": desk.hub.repositories[
                    "datasets", CORPORA[name].repository
                ].refs[parquet]
                for name in ("ptb", "bookcorpus")
            },
        }
    taken = [request.path for request in desk.hub.taken("/cdn/")]
    assert len(taken) == len(set(taken))
    assert sum("model.safetensors" in path for path in taken) == 1

    # What is cached is used without a request, and `plan` says what it is.
    desk.hub.requests.clear()
    second = desk.commit()
    again = desk("run", "s.yaml", "--out", "again")
    assert again.returncode == 0, again.stdout + again.stderr
    assert not [one for one in desk.hub.requests if "agent-harnesses" not in one.path]
    assert desk.records("again")["dense"].provenance["model_revision"] == first
    planned = desk("plan", "s.yaml").stdout
    assert f"not pinned: model org/tiny: 'main', which is {first} in the cache" in planned

    # Another cache has another commit: the report says that the cells do not belong together.
    (desk.folder / "runs/hub/cells" / f"{desk.records()['wanda'].id}.json").unlink()
    moved = desk("run", "s.yaml", HF_HOME=str(desk.folder / "other"))
    assert moved.returncode == 0, moved.stdout + moved.stderr
    assert desk.records()["wanda"].provenance["model_revision"] == second
    report = (desk.folder / "runs/hub/report.html").read_text()
    assert "The model org/tiny at main was not the same in all cells" in report

    # A commit pins it, whatever the branch does.
    pinned = desk("run", "s.yaml", "--set", f"models=org/tiny@{first}", "--out", "pinned")
    assert pinned.returncode == 0
    record = desk.records("pinned")["dense"]
    assert record.cell.model.name == f"org/tiny@{first[:7]}"
    assert record.provenance["model_revision"] == first


def test_prune_goes_on_with_the_download_of_an_interrupted_one(desk: Desk) -> None:
    weights = len(desk.files["model.safetensors"])
    desk.hub.cut("/cdn/", after=100_000)
    desk.hub.cut("/cdn/", after=0, times=3)
    command = ("prune", "org/tiny", "magnitude", "sparsity=0.5", "--out", "pruned")
    stopped = desk(*command)
    assert stopped.returncode == 2
    assert (
        f"error: model 'org/tiny': the download of model.safetensors stopped after 100,000 of "
        f"{weights:,} bytes" in stopped.stderr
    )
    assert "fix: run again: it goes on from there" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert not (desk.folder / "pruned").exists()
    desk.hub.requests.clear()
    done = desk(*command)
    assert done.returncode == 0, done.stderr
    assert [one.range for one in desk.hub.taken("/cdn/")] == ["bytes=100000-"]
    assert read_checkpoint(desk.folder / "pruned").parameters

    # A folder of the hub's cache is a model too, called by its id and commit.
    [snapshot] = Path(desk.environment["HF_HOME"]).glob("hub/models--*/snapshots/*")
    planned = json.loads(desk("plan", "smoke", "--set", f"models={snapshot}", "--json").stdout)
    assert {cell["model"] for cell in planned["cells"]} == {
        f"org/tiny@{desk.model.refs['main'][:7]}"
    }


def test_refusals_are_rows_that_say_what_to_do_and_the_same_command_goes_on(desk: Desk) -> None:
    desk.write(methods=["dense"], quality={"perplexity": SUITE["quality"]["perplexity"]})
    desk.model.access = "gated"

    def failed(**environment: str) -> tuple[str, str]:
        done = desk("run", "s.yaml", **environment)
        assert done.returncode == 1, done.stdout + done.stderr
        assert (desk.folder / "runs/hub/report.html").is_file()
        error = desk.records()["dense"].error
        assert error is not None
        assert error.phase == "fetch"
        return error.message, error.hint or ""

    message, hint = failed()
    assert message.startswith("model 'org/tiny' is gated")
    assert f"accept it at {desk.hub.url}/org/tiny, then set HF_TOKEN" in hint
    desk.model.members.add("hf_member")
    with desk.hub.hold("/resolve/"):
        message, hint = failed(HF_TOKEN="hf_member")
    assert "no answer from the hub" in message
    assert "within 1 s" in message
    desk.hub.refuse("/resolve/", 429, times=100, retry_after="120")
    message, hint = failed(HF_TOKEN="hf_member")
    assert "too many requests" in message
    assert "in 120 s" in hint
    desk.hub.faults.clear()
    message, hint = failed(HF_ENDPOINT="http://127.0.0.1:1", HF_TOKEN="hf_member")
    assert "cannot reach the hub at http://127.0.0.1:1" in message
    done = desk("run", "s.yaml", HF_TOKEN="hf_member")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "hf_member" not in desk.records()["dense"].model_dump_json()
