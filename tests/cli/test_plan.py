"""`prunebench plan` and `prunebench schema`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from prunebench.app.plan import SuiteRequest, plan_suite
from prunebench.cli.plan import command as plan_command
from prunebench.cli.schema import command as schema_command
from prunebench.errors import PrunebenchError
from prunebench.measure.devices.provenance import machine
from prunebench.record.record import Error, Record
from prunebench.store.run_folder import RunStore

SUITE = """\
name: cli-test
models: smollm2-135m-instruct
methods: [dense, {magnitude: {sparsity: [0.5, 2:4]}}]
quality: {perplexity: {corpus: text.txt, windows: 2, length: 8}}
"""

KEYS = ["id", "label", "model", "method", "options", "calibration", "seed", "status", "estimate"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(SUITE, encoding="utf-8")
    Path("text.txt").write_text("Text to score. " * 20, encoding="utf-8")
    return tmp_path


def run(*arguments):
    result = CliRunner().invoke(
        plan_command, [str(argument) for argument in arguments], catch_exceptions=False
    )
    assert result.exit_code == 0
    return result.stdout


@pytest.mark.usefixtures("here")
def test_json_has_stable_keys():
    described = json.loads(run("s.yaml", "--json"))
    assert list(described) == ["suite", "folder", "warnings", "cells", "unpinned", "totals"]
    assert (described["suite"], described["folder"]) == ("cli-test", str(Path("runs", "cli-test")))
    assert [list(cell) for cell in described["cells"]] == [KEYS] * 3
    assert [cell["label"] for cell in described["cells"]] == [
        "dense",
        "magnitude sparsity=0.5",
        "magnitude sparsity=2:4",
    ]
    assert {cell["status"] for cell in described["cells"]} == {"to run"}
    flops = [cell["estimate"]["flop"] for cell in described["cells"]]
    assert all(flops)
    assert described["totals"]["estimate"]["flop"] == sum(flops)
    counts = {key: described["totals"][key] for key in ("cells", "done", "failed", "to_run")}
    assert counts == {"cells": 3, "done": 0, "failed": 0, "to_run": 3}
    assert not Path("runs").exists()


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.usefixtures("here")
def test_no_id_and_no_word_is_broken_in_a_narrow_terminal(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    words = ["--set", f"models=org/tiny@{'c0ffee' * 6}c0ff", "--set", "seeds=[0, 1]"]
    described = json.loads(run("s.yaml", *words, "--json"))
    lines = run("s.yaml", *words).splitlines()
    ids = {cell["id"] for cell in described["cells"]}
    assert {line.split(" ")[0] for line in lines} >= ids
    rows = [line for line in lines if line.split(" ")[0] in ids]
    assert all("to run" in line for line in rows) or width == 60
    assert all(set(line.split()) & {"dense", "magnitude"} for line in rows)
    assert max(map(len, lines)) <= width
    if width == 60:
        assert any(line.startswith("left out, because the terminal is narrow: ") for line in lines)


@pytest.mark.usefixtures("here", "hub_cache")
def test_what_no_commit_pins_is_named(hub_cache):
    commit = "c0ffee" * 6 + "c0ff"
    assert "not pinned" not in run("s.yaml")
    corpora = "quality.perplexity=[{corpus: [wikitext2, ptb], windows: 2}]"
    tasks = "quality.tasks=[{task: piqa}]"
    options = ("s.yaml", "--set", "models=org/tiny", "--set", corpora, "--set", tasks)
    lines = [line for line in run(*options).splitlines() if line.startswith("not pinned")]
    assert lines == [
        (
            "not pinned: model org/tiny: 'main' of the hub, not in the cache yet; "
            "to pin it, write org/tiny@COMMIT"
        ),
        "not pinned: corpus ptb: 'refs/convert/parquet' of the hub, not in the cache yet",
        "not pinned: task piqa: 'main' of its data set on the hub",
    ]
    ref = hub_cache / "models--org--tiny" / "refs" / "main"
    ref.parent.mkdir(parents=True)
    ref.write_text(commit)
    assert (
        f"not pinned: model org/tiny: 'main', which is {commit} in the cache; "
        f"to pin it, write org/tiny@{commit}" in run(*options)
    )
    described = json.loads(run(*options, "--json"))
    assert described["unpinned"][0] == {
        "what": "model org/tiny",
        "revision": "main",
        "commit": commit,
    }


@pytest.mark.usefixtures("here")
def test_done_and_failed_cells_are_counted():
    planned = plan_suite(SuiteRequest("s.yaml", Path("out")))
    store = RunStore.create(planned.folder, planned.plan, planned.suite.text)
    dense, half, _ = planned.cells
    times = {"started": "2026-01-01T00:00:00Z", "finished": "2026-01-01T00:00:01Z"}
    store.write(Record(id=dense.id, cell=dense, status="ok", **times))
    error = Error(phase="prune", type="ValueError", message="m", log_tail="", command="c")
    store.write(Record(id=half.id, cell=half, status="timeout", error=error, **times))
    described = json.loads(run("s.yaml", "--out", "out", "--json"))
    assert [cell["status"] for cell in described["cells"]] == ["done", "failed", "to run"]
    totals = described["totals"]
    assert (
        totals["left"]["tokens"]
        == totals["estimate"]["tokens"] - described["cells"][0]["estimate"]["tokens"]
    )
    assert "1 done, 1 to run, 1 failed, to be tried again" in run("s.yaml", "--out", "out")


@pytest.mark.usefixtures("here")
def test_overrides_and_selection_reach_the_plan():
    found = json.loads(
        run(
            "s.yaml",
            "--json",
            "--set",
            "name=other",
            "--set",
            "seeds=7",
            "--only",
            "magnitude",
            "--skip",
            "*2:4",
        )
    )
    assert found["suite"] == "other"
    assert [(cell["label"], cell["seed"]) for cell in found["cells"]] == [
        ("dense", 7),
        ("magnitude sparsity=0.5", 7),
    ]


@pytest.mark.usefixtures("here")
def test_the_table_has_one_row_per_cell():
    shown = run("s.yaml")
    rows = [
        line for line in shown.splitlines() if "to run " in line and "smollm2-135m-instruct" in line
    ]
    assert len(rows) == 3
    assert "3 cells: 0 done, 3 to run; at least" in shown


@pytest.mark.usefixtures("here")
def test_bad_input_is_a_prunebench_error():
    with pytest.raises(
        PrunebenchError, match=r"^--set methods\.magnitude\.sparsity=3: .*out of range"
    ):
        run("s.yaml", "--set", "methods.magnitude.sparsity=3")


def test_schema_knows_the_built_in_methods():
    result = CliRunner().invoke(schema_command, [], catch_exceptions=False)
    assert result.exit_code == 0
    names = json.loads(result.stdout)["properties"]["methods"]["anyOf"][0]["anyOf"][0]["enum"]
    assert {"dense", "random", "magnitude", "wanda", "shortgpt"} <= set(names)


def test_the_shipped_quickstart_is_planned_without_torch(tmp_path):
    code = (
        "import json, sys\n"
        "from prunebench.app.plan import SuiteRequest\n"
        "from prunebench.cli.plan import describe\n"
        "described = describe(SuiteRequest('quickstart'))\n"
        "print(json.dumps([len(described['cells']), [name for name in ('torch', 'transformers') if name in sys.modules]]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [8, []]


def test_importing_the_commands_imports_click_alone(tmp_path):
    code = (
        "import sys, prunebench.cli.plan, prunebench.cli.schema\n"
        "print([name for name in ('pydantic', 'yaml', 'rich', 'numpy', 'torch') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.usefixtures("here")
def test_minutes_come_from_earlier_runs_on_this_machine():
    assert "minutes" not in run("s.yaml")
    assert json.loads(run("s.yaml", "--json"))["totals"]["left"]["seconds"] is None
    planned = plan_suite(SuiteRequest("s.yaml"))
    store = RunStore.create(planned.folder, planned.plan, planned.suite.text)
    dense = planned.cells[0]
    facts = {key: machine()[key] for key in ("cpu", "cpu_cores_usable", "gpus")}
    cost = {"prune_s": 0, "calibration_tokens": 0, "calibration_sha256": None}
    cost |= {"peak_rss_bytes": None, "total_s": 720, "phases": [{"phase": "load", "seconds": 720}]}
    times = {"started": "2026-01-01T00:00:00Z", "finished": "2026-01-01T00:12:00Z"}
    store.write(Record(id=dense.id, cell=dense, status="ok", provenance=facts, cost=cost, **times))
    shown = run("s.yaml", "--out", "runs/new")
    heads, first, *_ = shown.splitlines()
    assert heads.split()[-1] == "minutes"
    assert first.split()[-1] == "12"
    assert "as earlier runs on this machine took" in shown
    totals = json.loads(run("s.yaml", "--json"))["totals"]
    assert totals["estimate"]["seconds"] == pytest.approx(720 + totals["left"]["seconds"])
