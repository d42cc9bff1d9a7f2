"""The process of a runtime: it may print and crash, and the cell only gets a reason."""

from __future__ import annotations

import pytest

from prunebench.cell.runtime_worker import Job
from prunebench.cell.runtimes import UnavailableRuntimeError, run_worker
from prunebench.plugin.files import with_files

pytestmark = pytest.mark.runtimes

PLUGIN = """
import os, signal, sys
from prunebench import PrunebenchError, Runtime, hookimpl

class Faulty(Runtime):
    "Goes wrong as the name of the folder says."
    name = "faulty"
    def convert(self, folder, out, precision):
        print("to standard output")
        if folder.name == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if folder.name == "exit":
            os._exit(3)
        if folder.name == "refuse":
            raise PrunebenchError("no such layer", hint="prune another one")
        (out / "model").write_text(str(os.getpid()))
        return out / "model"
    def open(self, path, threads, length):
        raise NotImplementedError

@hookimpl
def prunebench_register_runtime():
    return Faulty
"""


@pytest.fixture
def convert(tmp_path):
    plugin = tmp_path / "faulty.py"
    plugin.write_text(PLUGIN)
    (tmp_path / "out").mkdir()

    def convert(name):
        job = Job(
            runtime="faulty",
            options={},
            folder=str(tmp_path / name),
            out=str(tmp_path / "out"),
        )
        with with_files((str(plugin),)):
            return run_worker(job)

    return convert


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("crash", "its process was ended by SIGSEGV"),
        ("exit", "its process ended with exit code 3"),
        ("refuse", r"no such layer \(prune another one\)"),
    ],
)
def test_what_goes_wrong_in_the_process_is_a_reason(convert, name, reason):
    with pytest.raises(UnavailableRuntimeError, match=reason):
        convert(name)


def test_what_it_prints_is_not_in_the_way_of_the_answer(convert, tmp_path, capfd):
    answer = convert("sound")
    assert answer.path == "model"
    assert (tmp_path / "out" / "model").read_text().isdigit()
    assert "to standard output" not in capfd.readouterr().out
