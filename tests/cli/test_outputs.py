"""An output that cannot be written is found before any work, and no device is replaced by a file."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from prunebench.errors import PrunebenchError
from prunebench.model.files import check_file_target, check_writable
from prunebench.store.atomic import write_atomically
from rig import Rig

NOBODY_CAN = "/proc/prunebench/out"
"""Not even root can write there."""


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    rig = Rig(tmp_path_factory.mktemp("outputs"))
    assert rig.run(rig.suite("magnitude: {sparsity: 0.5}")).returncode == 0
    (rig.folder / "a file").write_text("not a folder")
    (rig.folder / "a folder").mkdir()
    return rig


COMMANDS: list[tuple[list[str], str]] = [
    (["prune", "./model", "magnitude"], "--out"),
    (["profile", "./model"], "--json"),
    (["export", "runs/tiny"], "--out"),
    (["export", "runs/tiny", "--format", "parquet"], "--out"),
    (["export", "runs/tiny", "--format", "sqlite"], "--out"),
    (["report", "runs/tiny"], "--out"),
    (["compare", "runs/tiny", "runs/tiny"], "--html"),
    (["run", "tiny.yaml"], "--out"),
]


@pytest.mark.parametrize("out", [NOBODY_CAN, "a file/out"])
@pytest.mark.parametrize(
    ("words", "option"), COMMANDS, ids=lambda one: one if isinstance(one, str) else " ".join(one)
)
def test_an_output_that_cannot_be_written_is_one_line_before_any_work(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, words: list[str], option: str, out: str
) -> None:
    def no_work(*_: Any, **__: Any) -> None:
        raise AssertionError("work has begun")

    for work in (
        "prunebench.cell.pipeline.build_pruned_model",
        "prunebench.app.profile.set_up",
        "prunebench_report.load",
        "prunebench_report.render",
        "prunebench.engine.session.Session.run",
    ):
        monkeypatch.setattr(work, no_work)
    done = rig.invoke(*words, option, out)
    assert done.returncode == 2
    first, *_ = done.stderr.splitlines()
    assert first.startswith("error: "), done.stderr
    assert out.split("/")[-2] in first
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("words", "option"), COMMANDS[1:7], ids=str)
def test_a_folder_in_the_place_of_a_file(rig: Rig, words: list[str], option: str) -> None:
    done = rig.invoke(*words, option, "a folder")
    assert done.returncode == 2
    assert "error: cannot write a folder: it is a folder" in done.stderr


def test_a_report_that_cannot_be_written_is_found_before_the_first_cell(rig: Rig) -> None:
    (rig.folder / "runs" / "blocked" / "report.html").mkdir(parents=True)
    done = rig.run("tiny.yaml", "--out", "runs/blocked")
    assert done.returncode == 2
    assert "is not a run of prunebench" in done.stderr
    # In a folder that is a run.
    (rig.folder / "runs" / "tiny" / "report.html").unlink()
    (rig.folder / "runs" / "tiny" / "report.html").mkdir()
    try:
        done = rig.run("tiny.yaml")
        assert done.returncode == 2
        assert "report.html: it is a folder" in done.stderr
    finally:
        (rig.folder / "runs" / "tiny" / "report.html").rmdir()


def test_the_check_leaves_nothing_and_missing_folders_can_be_made(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "deep" / "out")
    check_file_target(tmp_path / "out.csv")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(PrunebenchError, match="is no folder"):
        check_writable(tmp_path / "file" / "out")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    check_writable(tmp_path / "dangling")


@pytest.mark.parametrize("form", ["csv", "json", "sqlite", "parquet"])
def test_a_pipe_is_written_into_and_stays_a_pipe(rig: Rig, tmp_path: Path, form: str) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
    reader.start()
    done = rig.invoke("export", "runs/tiny", "--format", form, "--out", pipe)
    reader.join(60)
    assert done.returncode == 0, done.stderr
    assert pipe.is_fifo()
    assert len(got[0]) > 100


def test_a_device_is_written_into() -> None:
    write_atomically(Path("/dev/null"), "text")
    assert Path("/dev/null").is_char_device()
    with pytest.raises(PrunebenchError, match="cannot write /dev/full: No space left"):
        write_atomically(Path("/dev/full"), "text")
