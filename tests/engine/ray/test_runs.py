"""The Ray engine gives the results of the local one; a lost node is a failed record."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from prunebench.record.record import Record
from prunebench.store.run_folder import RunStore
from rig import Rig

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(400),
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="ray is not installed: tox run -e ray"
    ),
]

PLUGIN = """
import os, time
from prunebench import Method, hookimpl

class Crashing(Method):
    name = "crashing"
    def prune(self, model, context):
        print("about to crash", flush=True)
        os.kill(os.getpid(), 11)

class Raising(Method):
    name = "raising"
    def prune(self, model, context):
        raise ValueError("this method cannot do it")

class Slow(Method):
    name = "slow"
    def prune(self, model, context):
        with open(os.environ["PRUNEBENCH_TEST_PIDS"], "a") as file:
            file.write(f"{os.getpid()}\\n")
        time.sleep(float(os.environ.get("PRUNEBENCH_TEST_S", "0")))

class Slower(Slow):
    name = "slower"

@hookimpl
def prunebench_register_method():
    return [Crashing, Raising, Slow, Slower]
"""
LOCAL = ["--engine", "local"]
RAY = ["--engine", "ray"]


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    rig = Rig(tmp_path)
    rig.environment |= {"RAY_ADDRESS": "", "PRUNEBENCH_TEST_PIDS": str(tmp_path / "pids")}
    (tmp_path / "mine.py").write_text(PLUGIN)
    return rig


def records(rig: Rig, name: str) -> dict[str, Record]:
    good, bad = RunStore.open(rig.folder / "runs" / name).records()
    assert not bad
    return {record.cell.label: record for record in good}


def quality(found: dict[str, Record]) -> dict[str, object]:
    return {
        name: (record.id, record.status, record.quality, record.audit)
        for name, record in found.items()
    }


def table(found: dict[str, Record], head: str) -> None:
    print(f"\n{head}")
    for name, record in found.items():
        figure = f"{record.quality.perplexity[0].perplexity:.6f}" if record.quality else "-"
        error = f"{record.error.type}, while in '{record.error.phase}'" if record.error else ""
        print(
            f"  {name:<26} {record.id}  {record.status:<8} {figure:>12}  {record.provenance.get('node', ''):<16} {error}"
        )


def test_the_working_folder_plays_no_part(rig: Rig) -> None:
    for name in (
        "random",
        "profile",
        "tokenizers",
        "torch",
        "json",
        "logging",
        "pydantic",
        "psutil",
    ):
        (rig.folder / f"{name}.py").write_text(f"raise SystemExit('the user''s own {name}.py')\n")
    done = rig.prunebench("run", rig.suite("magnitude: {sparsity: 0.5}"), *RAY)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_same_suite_on_both_engines(rig: Rig) -> None:
    suite = rig.suite(
        "magnitude: {sparsity: 2:4}",
        "crashing",
        "wanda: {sparsity: 0.5}",
        "raising",
        more="keep_models: true",
        latency=True,
    )
    for engine in (LOCAL, RAY):
        done = rig.prunebench(
            "run",
            suite,
            "--plugin",
            "mine.py",
            "--out",
            f"runs/{engine[1]}",
            *engine,
        )
        assert done.returncode == 1, done.stdout + done.stderr
        assert "2 of 5 cells failed" in done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        assert "raylet" not in done.stdout + done.stderr
    local, ray = records(rig, "local"), records(rig, "ray")
    table(local, "local engine")
    table(ray, "Ray engine, a cluster of its own")
    assert quality(ray) == quality(local)
    assert {name: record.status for name, record in ray.items() if record.error} == {
        "crashing": "failed",
        "raising": "failed",
    }
    for name in ("crashing", "raising"):
        mine, theirs = ray[name].error, local[name].error
        assert mine is not None
        assert theirs is not None
        assert (mine.type, mine.phase, mine.message) == (theirs.type, theirs.phase, theirs.message)
        assert mine.command == theirs.command.replace("runs/local", "runs/ray")
    store = RunStore(rig.folder / "runs" / "ray")
    assert "about to crash" in store.log_path(ray["crashing"].id).read_text()
    for engine in ("local", "ray"):
        kept = RunStore(rig.folder / "runs" / engine).model_path(ray["dense"].id)
        assert (kept / "model.safetensors").stat().st_size == ray["dense"].audit.disk_bytes
    again = rig.prunebench(
        "run", suite, "--plugin", "mine.py", "--out", "runs/ray", *LOCAL, "--only", "magnitude"
    )
    assert (
        "2 cells, 2 finished" in again.stdout
    )  # what one engine finished is finished for the other


def test_a_lost_node_is_a_failed_record_that_the_next_run_repeats(rig: Rig) -> None:
    rig.environment["PRUNEBENCH_TEST_S"] = "40"
    suite = rig.suite("slow", "slower", "magnitude")
    with nodes(rig) as (address, second, kill):
        run = start(rig, suite, address)
        wait_for_pruning(rig, on=second)
        kill()
        said, complaints = run.communicate(timeout=300)
        assert run.returncode == 1, said + complaints
        assert "raylet" not in said + complaints
        found = records(rig, "tiny")
        table(found, "two nodes, the second killed in the middle")
        assert sorted(record.status for record in found.values()) == ["failed", "ok", "ok", "ok"]
        [lost] = [record for record in found.values() if record.error]
        assert lost.cell.method.name in {"slow", "slower"}
        assert lost.error is not None
        assert (lost.error.type, lost.error.phase) == ("node lost", "prune")
        assert "left the cluster while it ran there" in lost.error.message
        rig.environment["PRUNEBENCH_TEST_S"] = "0"
        again = rig.prunebench("run", suite, "--plugin", "mine.py", *RAY, "--ray-address", address)
        assert again.returncode == 0, again.stdout + again.stderr
        assert "4 cells, 3 finished" in again.stdout
        table(records(rig, "tiny"), "the next run, on the node that is left")
    assert {record.status for record in records(rig, "tiny").values()} == {"ok"}


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_leaves_no_process_and_can_be_continued(
    rig: Rig, how: signal.Signals
) -> None:
    rig.environment |= {"PRUNEBENCH_TEST_S": "500", "PRUNEBENCH_TEST_MARK": f"{rig.folder}-{how}"}
    suite = rig.suite("slow", "magnitude")
    run = start(rig, suite, None)
    wait_for_pruning(rig)
    begins = (
        "prunebench-" + json.loads((rig.folder / "runs" / "tiny" / ".lock").read_text())["mark"][:8]
    )
    run.send_signal(how)
    _, said = run.communicate(timeout=60)
    if how != signal.SIGKILL:
        assert run.returncode == 130, said
        assert "the same command continues" in said
        assert "Traceback" not in said
    deadline = time.monotonic() + 20
    while (left := marked(rig.environment["PRUNEBENCH_TEST_MARK"])) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not left
    done = rig.prunebench("run", suite, "--plugin", "mine.py", "--skip", "slow", *LOCAL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(Path(tempfile.gettempdir()).glob(f"{begins}-*"))


def test_no_cluster_at_the_address_is_one_clear_line(rig: Rig) -> None:
    suite = rig.suite("magnitude")
    for address, words in (
        ("127.0.0.1:1", "cannot reach a Ray cluster at 127.0.0.1:1"),
        ("ray://h:1", "client protocol"),
    ):
        done = rig.prunebench("run", suite, *RAY, "--ray-address", address)
        assert done.returncode == 2, done.stdout + done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr


@contextmanager
def nodes(rig: Rig) -> Iterator[tuple[str, str, Callable[[], None]]]:
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "ray_nodes.py")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **rig.environment},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    _, address, second = heard(process, "address").split()

    def kill() -> None:
        process.stdin.write("kill\n")
        process.stdin.flush()
        heard(process, "killed")

    try:
        yield address, second, kill
    finally:
        process.stdin.close()
        process.stdout.read()
        process.wait(60)
        process.stdout.close()


def heard(process: subprocess.Popen[str], word: str) -> str:
    while True:
        line = process.stdout.readline()
        assert line, f"the nodes ended before they said '{word}'"
        if line.startswith(word):
            return line


def start(rig: Rig, suite: Path, address: str | None) -> subprocess.Popen[str]:
    where = [] if address is None else ["--ray-address", address]
    return subprocess.Popen(
        [sys.executable, "-m", "prunebench", "run", str(suite), "--plugin", "mine.py", *RAY, *where],
        cwd=rig.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **rig.environment},
    )  # fmt: skip


def wait_for_pruning(rig: Rig, on: str = "") -> None:
    """Wait until a slow cell is being pruned, on the node ``on`` if that is given."""
    file = Path(rig.environment["PRUNEBENCH_TEST_PIDS"])
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        pids = map(int, file.read_text().split()) if file.exists() else []
        if any(f"--node_id={on}" in ancestors(pid) for pid in pids):
            time.sleep(1)  # the phase is told ten times a second
            return
        time.sleep(0.2)
    raise AssertionError("no slow cell was pruned")


def ancestors(pid: int) -> str:
    """The command lines of the processes that ``pid`` descends from."""
    try:
        return " ".join(
            word for parent in psutil.Process(pid).parents() for word in parent.cmdline()
        )
    except psutil.Error:
        return ""


def marked(mark: str) -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            if (
                process.environ().get("PRUNEBENCH_TEST_MARK") == mark
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                found.append(" ".join(process.cmdline())[:100])
        except psutil.Error:
            continue
    return found
