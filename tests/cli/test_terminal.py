"""The terminal can fail, results cannot: encodings without signs, closed pipes, full disks."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from prunebench.cli.terminal import careful_streams, result_is_a_file, say
from rig import Rig

SIGNS = "quality: {perplexity: {corpus: text.txt, windows: 2, length: 16}, gate: 0.5}"
ASCII = {"PYTHONIOENCODING": "ascii"}


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """A rig with a finished run in `runs/tiny`, whose model has a name beyond ASCII."""
    rig = Rig(tmp_path_factory.mktemp("terminal"))
    suite = rig.suite("magnitude: {sparsity: [0.3, 0.5]}")
    suite.write_text(
        suite.read_text().replace("models: ./model", "models: {model: ./model, name: modèle-…}")
    )
    done = rig.invoke("run", suite)
    assert done.returncode == 0, done.stderr
    return rig


@contextmanager
def closed_pipe() -> Iterator[int]:
    """The descriptor of a pipe that nobody reads any more, as behind `| head -1`."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


@contextmanager
def full_disk() -> Iterator[int]:
    with Path("/dev/full").open("wb") as file:
        yield file.fileno()


def start(rig: Rig, *arguments: Any, **streams: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "prunebench", *map(str, arguments)],
        cwd=rig.folder,
        env={**os.environ, **rig.environment, **streams.pop("environment", {})},
        **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams),
    )


@pytest.mark.processes
@pytest.mark.parametrize("broken", [closed_pipe, full_disk], ids=["closed", "full"])
def test_a_run_whose_output_fails_ends_as_any_other(rig: Rig, tmp_path: Path, broken: Any) -> None:
    with broken() as descriptor:
        done = start(
            rig, "run", "tiny.yaml", "--out", tmp_path / "run", stdout=descriptor, stderr=descriptor
        )
    assert done.returncode == 0
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.processes
def test_a_run_in_an_ascii_terminal_replaces_characters(rig: Rig, tmp_path: Path) -> None:
    done = start(rig, "run", "tiny.yaml", "--out", tmp_path / "run", environment=ASCII)
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "run" / "report.html").is_file()
    assert b"mod?le-?" in done.stdout
    assert (done.stdout + done.stderr).isascii()


@pytest.mark.processes
def test_a_failed_cell_is_the_exit_code_whatever_the_terminal_does(
    rig: Rig, tmp_path: Path
) -> None:
    words = ["--set", "limits.time_s=0.001", "--out", tmp_path / "run"]
    with closed_pipe() as descriptor:
        done = start(rig, "run", "tiny.yaml", *words, stdout=descriptor, stderr=descriptor)
    assert done.returncode == 1
    assert (tmp_path / "run" / "report.html").is_file()


PRINTING = [
    ["plan", "tiny.yaml"],
    ["export", "runs/tiny"],
    ["compare", "runs/tiny", "runs/tiny"],
    ["--help"],
]
OTHERS = [  # which end in the same code
    ["suites"],
    ["schema"],
    ["plugins"],
    ["doctor", "--offline"],
    ["families"],
    ["profile", "./model", "--prompt", "4", "--new-tokens", "2", "--min-time", "0"],
]


@pytest.mark.processes
@pytest.mark.parametrize(
    "arguments",
    [*PRINTING, *(pytest.param(words, marks=pytest.mark.faults) for words in OTHERS)],
    ids=" ".join,
)
def test_a_command_that_prints_ends_quietly(rig: Rig, arguments: list[str]) -> None:
    with closed_pipe() as descriptor:
        closed = start(rig, *arguments, stdout=descriptor)
    # The reader had enough.
    assert closed.returncode == 0
    with full_disk() as descriptor:
        full = start(rig, *arguments, stdout=descriptor)
    # What was asked for is lost, which one line says.
    assert full.returncode == 2
    assert full.stderr.endswith(b"error: cannot write the output: No space left on device\n")
    assert b"Traceback" not in closed.stderr + full.stderr


@pytest.mark.processes
@pytest.mark.parametrize("arguments", PRINTING[:3], ids=" ".join)
def test_a_command_in_an_ascii_terminal_replaces_characters(rig: Rig, arguments: list[str]) -> None:
    done = start(rig, *arguments, environment=ASCII)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.isascii()


@pytest.mark.processes
@pytest.mark.parametrize(
    "arguments",
    [["report", "runs/tiny"], ["prune", "./model", "magnitude", "--out", "pruned"]],
    ids=lambda words: words[0],
)
def test_a_command_that_writes_files_does_not_need_its_output(
    rig: Rig, arguments: list[str]
) -> None:
    with full_disk() as descriptor:
        done = start(rig, *arguments, stdout=descriptor, stderr=descriptor)
    assert done.returncode == 0


@pytest.mark.processes
def test_streams_may_be_closed_from_the_start(rig: Rig) -> None:
    for closing in ("2>&-", "<&- >&- 2>&-"):
        done = subprocess.run(
            ["sh", "-c", f'"$0" -m prunebench plan tiny.yaml {closing}', sys.executable],
            cwd=rig.folder,
            env={**os.environ, **rig.environment},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, (closing, done.stderr)
        assert b"Traceback" not in done.stderr


@pytest.mark.processes
def test_an_error_in_an_ascii_terminal_is_one_line(rig: Rig) -> None:
    done = start(rig, "plan", "modèle.yaml", environment=ASCII)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: ")
    assert done.stderr.isascii()
    assert b"Traceback" not in done.stderr


@pytest.mark.processes
def test_a_run_from_python_survives_its_terminal_too(rig: Rig, tmp_path: Path) -> None:
    code = "import prunebench, sys; prunebench.run('tiny.yaml', out=sys.argv[1])"
    for number, (environment, broken) in enumerate([(ASCII, None), ({}, closed_pipe)]):
        out = tmp_path / str(number)
        command = [sys.executable, "-c", code, str(out)]
        where = {"cwd": rig.folder, "env": {**os.environ, **rig.environment, **environment}}
        if broken is None:
            done = subprocess.run(command, capture_output=True, check=False, **where)
            assert done.returncode == 0, done.stderr
        else:
            with broken() as descriptor:
                subprocess.run(command, stdout=descriptor, check=False, **where)
        assert (out / "report.html").is_file()


def test_streams_are_put_back_and_in_memory_streams_stay() -> None:
    before = sys.stdout, sys.stderr
    with careful_streams() as streams:
        assert (sys.stdout, sys.stderr) == before or sys.stdout is not None
        say("something")
    assert (sys.stdout, sys.stderr) == before
    assert streams.lost() is None
    memory = io.StringIO()
    sys.stdout = memory
    try:
        with careful_streams():
            say("…")
    finally:
        sys.stdout = before[0]
    assert memory.getvalue() == "…\n"


def test_a_file_that_is_full_is_noted_unless_the_result_is_elsewhere() -> None:
    before = sys.stdout
    try:
        for elsewhere in (False, True):
            with Path("/dev/full").open("w") as sys.stdout, careful_streams() as streams:
                if elsewhere:
                    result_is_a_file()
                say("x" * 100_000)
                say("more")
            assert (streams.lost() is None) == elsewhere
    finally:
        sys.stdout = before
