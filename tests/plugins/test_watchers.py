"""Weights & Biases and MLflow get every finished cell, if the user asks for it and not otherwise."""

from __future__ import annotations

import math
import sys
from types import ModuleType, SimpleNamespace

import pytest

import report_builder as build
from prunebench_plugins import watch_mlflow, watch_wandb
from prunebench_plugins.watched_figures import VARIABLE, figures, settings
from rig import Rig


class FakeRun:
    def __init__(self, given):
        self.given, self.summary, self.code = given, {}, None

    def finish(self, exit_code):
        self.code = exit_code


@pytest.fixture
def wandb(monkeypatch):
    """A module of that name that keeps what it is given."""
    module = ModuleType("wandb")
    module.runs = []
    module.init = lambda **given: module.runs.append(FakeRun(given)) or module.runs[-1]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


class FakeClient:
    """What the watcher uses of `mlflow.MlflowClient`, with the same refusals of names."""

    experiments: dict[str, str]
    runs: list

    def get_experiment_by_name(self, name):
        known = self.experiments.get(name)
        return None if known is None else SimpleNamespace(experiment_id=known)

    def create_experiment(self, name):
        self.experiments[name] = str(len(self.experiments) + 1)
        return self.experiments[name]

    def create_run(self, experiment, **given):
        one = SimpleNamespace(experiment=experiment, given=given, params={}, metrics={}, tags={})
        one.info = SimpleNamespace(run_id=len(self.runs))
        self.runs.append(one)
        return one

    def log_param(self, run, key, value):
        assert not set(key) & set(":@=[]{}"), key
        self.runs[run].params[key] = value

    def log_metric(self, run, key, value):
        assert not set(key) & set(":@=[]{}"), key
        assert math.isfinite(value)
        self.runs[run].metrics[key] = value

    def set_tag(self, run, key, value):
        self.runs[run].tags[key] = value

    def set_terminated(self, run, **given):
        self.runs[run].end = given


@pytest.fixture
def mlflow(monkeypatch):
    module = ModuleType("mlflow")
    module.MlflowClient = type("Client", (FakeClient,), {"experiments": {}, "runs": []})
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return module.MlflowClient


@pytest.fixture
def wanda():
    return build.record(build.cell("wanda", sparsity=0.5), 52.31, 1.003)


def test_nothing_is_sent_that_nobody_asked_for(wandb, mlflow, wanda, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    for watcher in (watch_wandb, watch_mlflow):
        watcher.prunebench_cell_finished(wanda.cell, wanda)
    monkeypatch.setenv(VARIABLE, "mlflow")
    watch_wandb.prunebench_cell_finished(wanda.cell, wanda)
    assert (wandb.runs, mlflow.runs) == ([], [])


def test_wandb_gets_a_run_for_each_cell(wandb, wanda, monkeypatch):
    monkeypatch.setenv(VARIABLE, "wandb, mlflow")
    failed = build.failed(build.cell("wanda", seed=3, sparsity=0.6))
    for record in (wanda, failed):
        watch_wandb.prunebench_cell_finished(record.cell, record)
    good, bad = wandb.runs
    assert good.given["project"] == "prunebench"
    assert good.given["config"]["method.sparsity"] == 0.5
    assert good.given["name"] == "smollm2-135m-instruct wanda sparsity=0.5"
    assert good.summary["perplexity/boolq-passages"] == 52.31
    assert (good.code, bad.code) == (0, 1)
    assert bad.given["name"].endswith("seed 3")
    assert bad.given["tags"] == ["wanda", "failed"]
    assert bad.summary["error"] == "prune: index 9 is out of bounds"
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    watch_wandb.prunebench_cell_finished(wanda.cell, wanda)
    assert wandb.runs[-1].given["project"] == "mine"


def test_mlflow_gets_a_run_for_each_cell_with_its_times(mlflow, wanda, monkeypatch):
    monkeypatch.setenv(VARIABLE, "mlflow")
    failed = build.failed(build.cell("wanda", sparsity="2:4"))
    for record in (wanda, failed):
        watch_mlflow.prunebench_cell_finished(record.cell, record)
    good, bad = mlflow.runs
    assert mlflow.experiments == {"prunebench": "1"}
    assert good.experiment == bad.experiment == "1"
    assert good.params["method.sparsity"] == "0.5"
    assert good.metrics["size/sparsity"] == pytest.approx(0.5)
    assert good.end == {"status": "FINISHED", "end_time": good.given["start_time"] + 31_000}
    assert bad.end["status"] == "FAILED"
    assert bad.tags["error"] == "prune: index 9 is out of bounds"


def test_figures_have_names_and_are_finite(wanda):
    found = figures(wanda)
    speed = "speed/prompt128_batch1"
    assert found[f"{speed}/speedup"] == pytest.approx(1.003)
    assert (
        found[f"{speed}/speedup_low"] < found[f"{speed}/speedup"] < found[f"{speed}/speedup_high"]
    )
    assert found["size/parameters"] == wanda.audit.parameters
    assert found["cost/prune_s"] == 6.5
    sparse = build.with_kernels(wanda, 1.4)
    assert figures(sparse)["speed/prompt128_batch1_24/speedup"] == pytest.approx(1.4)
    wanda.quality.perplexity[0] = wanda.quality.perplexity[0].model_copy(
        update={"perplexity": math.inf}
    )
    assert "perplexity/boolq-passages" not in figures(wanda)
    assert figures(build.failed(wanda.cell)) == {}


def test_settings_are_flat_and_identify_the_cell(wanda):
    found = settings(wanda.cell)
    assert (found["id"], found["method"]) == (wanda.id, "wanda")
    assert found["model"] == "smollm2-135m-instruct"
    assert all(isinstance(value, str | int | float | bool) for value in found.values())


def test_a_service_that_is_not_installed_is_named_before_the_first_cell(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    rig = Rig(tmp_path)
    done = rig.invoke("run", rig.suite("magnitude"), "--watch", "wandb")
    assert done.returncode == 2
    assert "pip install 'prunebench[wandb]'" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_mlflow_itself_keeps_a_run(tmp_path, wanda, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv(VARIABLE, "mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    watch_mlflow.prunebench_cell_finished(wanda.cell, wanda)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("prunebench")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics["perplexity/boolq-passages"] == 52.31
    assert run.info.status == "FINISHED"


def test_wandb_itself_keeps_a_run(tmp_path, wanda, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv(VARIABLE, "wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    watch_wandb.prunebench_cell_finished(wanda.cell, wanda)
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
