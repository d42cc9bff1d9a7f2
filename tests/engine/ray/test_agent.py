"""What an agent on a node reports about its cell; nothing here needs Ray."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path

import pytest

from prunebench.engine.ray.agent import run_on_node
from prunebench.engine.ray.messages import CellTask, RunContext, travelling
from prunebench.errors import PrunebenchError
from prunebench.experiment.cell import Cell
from prunebench.experiment.measures import PerplexitySpec
from prunebench.experiment.model import ModelRef
from prunebench.experiment.plugins import MethodRef
from prunebench.plugin.files import VARIABLE as PLUGIN_FILES
from prunebench.plugin.files import with_files
from prunebench.plugin.host import load_plugins
from prunebench.plugin.registry import Registry
from prunebench.record.record import Record
from prunebench.text.resolve import resolve_corpus
from rig import Rig

PLUGIN = """
from prunebench import Method, hookimpl


class Telling(Method):
    name = "telling"

    def prune(self, model, context):
        print("told by a plugin that came along")


@hookimpl
def prunebench_register_method():
    return Telling
"""


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    return Rig(tmp_path_factory.mktemp("agent"))


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    (tmp_path / "mine.py").write_text(PLUGIN)
    with with_files([tmp_path / "mine.py"]):
        return load_plugins()


def tiny(rig: Rig, registry: Registry) -> Cell:
    entry = registry["method"]["telling"]
    text = resolve_corpus("text.txt", base=rig.folder, corpora={})
    return Cell(
        model=ModelRef(name="model", kind="folder", location=str(rig.folder / "model")),
        method=MethodRef(name="telling", distribution=entry.distribution, version=entry.version),
        perplexity=(PerplexitySpec(corpus=text, split="all", length=16, windows=2),),
        device="cpu",
        threads=1,
        keep_model=True,
    )


def test_an_agent_reports_everything_about_its_cell(
    rig: Rig, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv(PLUGIN_FILES, raising=False)
    before = dict(os.environ)
    cell = tiny(rig, registry)
    context = RunContext(
        version("prunebench"),
        "feed0123",
        travelling({**rig.environment, "OMP_NUM_THREADS": "1"}),
        (("mine.py", PLUGIN.encode()),),
    )
    messages = list(run_on_node(context, CellTask(cell.model_dump_json(), 1)))
    assert dict(os.environ) == before
    assert messages[0][0] == "at"
    assert messages[-1][0] == "record"
    record = Record.model_validate_json(messages[-1][1])
    assert record.status == "ok", record.error
    assert record.cell == cell
    phases = [content[0] for kind, content in messages if kind == "event"]
    assert phases[0] == "fetch"
    assert {"load", "prune", "perplexity"} <= set(phases)
    log = b"".join(content for kind, content in messages if kind == "log")
    assert b"told by a plugin that came along" in log
    partial = [content for kind, content in messages if kind == "partial results"]
    assert b"perplexity" in partial[-1]
    sizes: dict[str, int] = {}
    for kind, content in messages:
        if kind == "model":
            sizes[content[0]] = sizes.get(content[0], 0) + len(content[1])
    assert sizes["model.safetensors"] == record.audit.disk_bytes
    assert "config.json" in sizes


def test_a_node_with_another_version_says_so() -> None:
    with pytest.raises(PrunebenchError, match=r"0\.0\.1 where the run was started"):
        next(run_on_node(RunContext("0.0.1", "feed", {}, ()), CellTask("{}", 1)))
