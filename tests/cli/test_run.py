"""`prunebench run` end to end on a tiny model: results, faults as rows, continuing, bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prunebench.store.run_folder import RunStore
from rig import Rig

FAULTY = """
import os, time
from prunebench import Method, hookimpl

class Raising(Method):
    name = "raising"
    def prune(self, model, context):
        print("about to raise")
        raise ValueError("this method cannot do it")

class Exiting(Method):
    name = "exiting"
    def prune(self, model, context):
        os._exit(0)

class Crashing(Method):
    name = "crashing"
    def prune(self, model, context):
        os.kill(os.getpid(), 11)

class Hanging(Method):
    name = "hanging"
    def prune(self, model, context):
        open("hanging.txt", "w").close()
        time.sleep(600)

class Poisoning(Method):
    name = "poisoning"
    def prune(self, model, context):
        next(model.model.layers[1].mlp.parameters()).fill_(float("nan"))

class Murdering(Method):
    name = "murdering"
    def prune(self, model, context):
        os.kill(os.getppid(), 9)
        time.sleep(600)

@hookimpl
def prunebench_register_method():
    return [Raising, Exiting, Crashing, Hanging, Poisoning, Murdering]

@hookimpl
def prunebench_cell_finished(cell, record):
    with open("finished.txt", "a") as file:
        file.write(f"{cell.method.name} {record.status}\\n")
"""
FAULTS = ["raising", "exiting", "crashing", "poisoning", "murdering"]
OFFLINE = """
import socket

def refuse(self, address):
    open("connected.txt", "a").write(f"{address}\\n")
    raise OSError("no network in this test")

connect = socket.socket.connect
socket.socket.connect = (
    lambda self, a: connect(self, a) if self.family == socket.AF_UNIX else refuse(self, a)
)
socket.getaddrinfo = lambda *a, **k: refuse(None, a)
"""
"""Of a `sitecustomize`: notes every attempt to connect, in all processes of the run."""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Rig, subprocess.CompletedProcess[str]]:
    """One run with faulty methods among sound ones."""
    rig = Rig(tmp_path_factory.mktemp("run"))
    rig.plugin("faulty", FAULTY)
    rig.plugin("unimportable", "import no_such_module\n")
    with (rig.folder / "site" / "sitecustomize.py").open("a") as file:
        file.write(OFFLINE)
    methods = [
        "raising",
        "wanda: {sparsity: 2:4}",
        "exiting",
        "crashing",
        "poisoning",
        "murdering",
        "shortgpt: {count: 1}",
    ]
    suite = rig.suite(*methods, more="keep_models: true", latency=True)
    return rig, rig.prunebench("run", suite)


def records(rig: Rig) -> dict[str, object]:
    good, bad = RunStore.open(rig.folder / "runs" / "tiny").records()
    assert not bad
    return {record.cell.method.name: record for record in good}


def test_failures_are_rows_and_the_rest_goes_on(done) -> None:
    rig, result = done
    assert result.returncode == 1, result.stdout + result.stderr
    found = records(rig)
    assert {name: record.status for name, record in found.items()} == {
        "dense": "ok",
        "wanda": "ok",
        "shortgpt": "ok",
        **dict.fromkeys(FAULTS, "failed"),
    }
    assert "5 of 8 cells failed" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert "unimportable 1.0: ModuleNotFoundError" in result.stderr


def test_a_run_on_local_files_opens_no_connection(done) -> None:
    rig, _ = done
    assert not (rig.folder / "connected.txt").exists()


def test_a_failed_row_says_what_where_and_how_to_reproduce_it(done) -> None:
    rig, _ = done
    found = records(rig)
    error = found["raising"].error
    assert (error.phase, error.type, error.message) == (
        "prune",
        "ValueError",
        "this method cannot do it: faulty_plugin.py:9",
    )
    assert "cannot do it" in error.log_tail
    assert error.peak_rss_bytes > 0
    assert found["exiting"].error.message == "the process ended with code 0 and left no record"
    assert found["crashing"].error.type == "SIGSEGV"
    assert found["murdering"].error.type == "launcher died"
    assert "model.layers.1.mlp" in found["poisoning"].error.message
    assert {found[name].error.phase for name in ["exiting", "crashing", "murdering"]} == {"prune"}
    again = subprocess.run(
        error.command, shell=True, capture_output=True, text=True, env={**os.environ, **rig.environment},
    )  # fmt: skip
    assert again.returncode == 1
    assert (
        json.loads(again.stdout)["error"]["message"]
        == "this method cannot do it: faulty_plugin.py:9"
    )
    assert "about to raise" in again.stderr


def test_an_ok_row_holds_every_measure(done) -> None:
    rig, _ = done
    found = records(rig)
    wanda, dense, shortgpt = found["wanda"], found["dense"], found["shortgpt"]
    assert wanda.audit.form == "dense with zeros" or not wanda.audit.speedup_expected
    assert [(p.pattern, p.violations) for p in wanda.audit.patterns] == [("2:4", 0)]
    assert wanda.audit.sparsity == pytest.approx(0.5)
    assert shortgpt.audit.removed_layers
    assert shortgpt.audit.parameters < dense.audit.parameters
    assert shortgpt.method_notes["removed_in_order"] == shortgpt.audit.removed_layers
    for record in (dense, wanda, shortgpt):
        assert record.quality.perplexity[0].tokens_scored == 2 * 15
        assert record.quality.perplexity[0].window == 16
        assert record.speed.latency[0].rounds >= 2
        assert len(record.samples.latency[0].ttft_s) == record.speed.latency[0].rounds
        assert all(len(one) == 3 for one in record.samples.latency[0].inter_token_s)
        assert record.memory.peak_rss_bytes > 0
        assert record.io.load.bytes > 0
        assert record.io.generation[0].floor_s > 0
        assert {"load", "prune", "perplexity", "latency"} <= {
            phase.phase for phase in record.cost.phases
        }
        assert record.provenance["torch"]
    assert dense.speed.latency[0].inter_token_speedup is None
    assert wanda.speed.latency[0].inter_token_speedup.rounds >= 2
    assert wanda.cost.calibration_tokens == 32
    assert dense.cost.calibration_tokens == 0


def test_a_kept_model_loads_with_plain_transformers(done) -> None:
    from transformers import AutoModelForCausalLM

    rig, _ = done
    record = records(rig)["shortgpt"]
    folder = rig.folder / "runs" / "tiny" / "models" / record.id
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.num_hidden_layers == len(record.audit.kept_layers)
    assert (folder / "model.safetensors").stat().st_size == record.audit.disk_bytes


def test_the_report_and_the_exports_hold_all_rows(done) -> None:
    rig, _ = done
    html = (rig.folder / "runs" / "tiny" / "report.html").read_text()
    for name in ["raising", "wanda", "shortgpt", "this method cannot do it"]:
        assert name in html
    rows = json.loads(rig.invoke("export", "runs/tiny", "--format", "json").stdout)
    assert len(rows) == 8


def test_observers_were_told_in_the_runs_own_process(done) -> None:
    rig, _ = done
    lines = (rig.folder / "finished.txt").read_text().splitlines()
    assert lines[:3] == ["dense ok", "raising failed", "wanda ok"]


def test_a_second_run_repeats_only_what_failed(done) -> None:
    rig, _ = done
    cells = rig.folder / "runs" / "tiny" / "cells"
    before = {path: path.stat().st_mtime_ns for path in cells.glob("*.json")}
    others = [word for name in FAULTS if name != "raising" for word in ("--skip", name)]
    result = rig.prunebench("run", "tiny.yaml", *others, "--no-report")
    assert "4 cells, 3 finished" in result.stdout
    after = {path: path.stat().st_mtime_ns for path in cells.glob("*.json")}
    changed = {path.stem for path in before if before[path] != after[path]}
    assert changed == {records(rig)["raising"].id}


def test_a_finished_run_runs_no_cell(done) -> None:
    rig, _ = done
    others = ("--only", "dense", "--only", "wanda", "--only", "shortgpt")
    result = rig.run("tiny.yaml", *others)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 cells, 3 finished" in result.stdout
    assert "[1/" not in result.stdout


def test_a_folder_of_another_suite_is_refused(done) -> None:
    rig, _ = done
    other = rig.invoke("run", "tiny.yaml", "--set", "name=other", "--out", "runs/tiny")
    assert other.returncode == 2
    assert "belongs to the suite 'tiny'" in other.stderr


@pytest.mark.parametrize(
    "how",
    [
        signal.SIGINT,
        pytest.param(signal.SIGTERM, marks=pytest.mark.faults),
        pytest.param(signal.SIGKILL, marks=pytest.mark.faults),
    ],
)
def test_a_stopped_run_leaves_no_process_and_goes_on(tmp_path: Path, how: signal.Signals) -> None:
    rig = Rig(tmp_path)
    rig.plugin("faulty", FAULTY)
    suite = rig.suite("hanging")
    marker = f"PRUNEBENCH_TEST={tmp_path.name}-{how}"
    process = subprocess.Popen(
        [sys.executable, "-m", "prunebench", "run", str(suite)],
        cwd=rig.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **rig.environment, "PRUNEBENCH_TEST": marker.partition("=")[2]},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # where these tests run in the background
    )  # fmt: skip
    while not (rig.folder / "hanging.txt").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(how)
    _, said = process.communicate()
    if how != signal.SIGKILL:
        assert process.returncode == 130
        assert "the same command continues" in said
        assert "Traceback" not in said
    # After SIGKILL its children notice on their own; a process that never ends is a timeout here.
    while any(marker in _environment(pid) for pid in _processes()):
        time.sleep(0.1)
    assert [record.status for record in records(rig).values()] == ["ok"]
    result = rig.prunebench("run", suite, "--skip", "hanging", "--no-report")
    assert result.returncode == 0
    assert "1 cell, 1 finished" in result.stdout


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _environment(pid: int) -> str:
    try:
        if "Z (zombie)" in (Path("/proc") / str(pid) / "status").read_text():
            return ""
        return (Path("/proc") / str(pid) / "environ").read_text(errors="replace")
    except OSError:
        return ""


BAD = [
    (["run", "no-such-suite"], "no-such-suite"),
    (["run", "tiny.yaml", "--set", "methods.wanda.sparsty=0.5"], "did you mean 'sparsity'"),
    (["run", "tiny.yaml", "--set", "methods.wanda.sparsity=1.5"], "out of range"),
    (["run", "tiny.yaml", "--set", "models=./nowhere"], "nowhere"),
    (["run", "tiny.yaml", "--set", "calibration.corpus=nothing.txt"], "nothing.txt"),
    (["run", "tiny.yaml", "--only", "wandaa"], "wanda"),
    (["run", "tiny.yaml", "--out", "model"], "not a run of prunebench"),
    (["run", "tiny.yaml", "--out", "text.txt"], "is a file"),
    (["report", "model"], "not a run of prunebench"),
    (["export", "nowhere"], "not a run of prunebench"),
    (["ruin"], "did you mean 'run'"),
]


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    rig = Rig(tmp_path_factory.mktemp("idle"))
    rig.suite("wanda: {sparsity: 0.5}")
    return rig


@pytest.mark.parametrize(
    ("arguments", "words"),
    BAD,
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_clear_line_and_exit_code_two(
    idle: Rig, arguments: list[str], words: str
) -> None:
    result = idle.invoke(*arguments)
    assert result.returncode == 2, result.stdout + result.stderr
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert not (idle.folder / "runs").exists()
