"""What an interruption leaves in a run folder: half-written files go, finished stages stay, damaged records stay beside."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prunebench.cell.partial_results import PartialResults, fingerprint
from prunebench.errors import PrunebenchError
from prunebench.isolation.processes import MARK
from prunebench.record.codec import STEPS, UnreadableRecordError, checksum, from_json, to_json
from prunebench.record.memory import PhaseMemory
from prunebench.store import lock
from prunebench.store.run_folder import RunStore
from small_records import cell, record, store
from tiny import tiny_model

DIES = """
import os, sys
from pathlib import Path
from prunebench.store.atomic import write_atomically
Path.replace = lambda *_: os.kill(os.getpid(), 9)
write_atomically(Path(sys.argv[1]), "new")
"""


def test_a_power_cut_between_write_and_rename_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "cells" / "0123456789abcdef.json"
    path.parent.mkdir()
    path.write_text("old")
    done = subprocess.run([sys.executable, "-c", DIES, str(path)], check=False)
    assert done.returncode == -9
    assert path.read_text() == "old"
    assert len(list(path.parent.iterdir())) == 2
    with RunStore(tmp_path).lock():
        assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_the_message_names_who_holds_the_folder(tmp_path: Path) -> None:
    with (
        lock.hold(tmp_path, "m"),
        pytest.raises(
            PrunebenchError, match=rf"another run is writing .*process {os.getpid()} on "
        ),
        lock.hold(tmp_path),
    ):
        pytest.fail("both held the folder")


def owner(tmp_path: Path, host: str, mark: str = "") -> Path:
    path = tmp_path / lock.NAME
    path.write_text(
        json.dumps(
            {"pid": 999_999, "host": host, "started": "2026-01-01T00:00:00+00:00", "mark": mark}
        )
    )
    return path


def test_a_lock_of_another_machine_holds_while_it_is_renewed(tmp_path: Path) -> None:
    path = owner(tmp_path, "elsewhere")
    with (
        pytest.raises(
            PrunebenchError, match=r"process 999999 on elsewhere.*its lock was renewed 0 s ago"
        ),
        lock.hold(tmp_path),
    ):
        pytest.fail("both held the folder")
    old = time.time() - 2 * lock.STALE_AFTER_S
    os.utime(path, (old, old))
    with lock.hold(tmp_path) as former:
        assert former is not None
        assert former.host == "elsewhere"


def test_where_the_file_system_has_no_locks_the_time_of_the_lock_file_decides(
    tmp_path: Path, monkeypatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", none)
    with (
        lock.hold(tmp_path),
        pytest.raises(PrunebenchError, match="its lock was renewed"),
        lock.hold(tmp_path),
    ):
        pytest.fail("both held the folder")
    with lock.hold(tmp_path) as former:
        assert former is None


def test_a_stale_lock_is_taken_over_with_what_its_run_left_running(tmp_path: Path) -> None:
    mark = f"test-{os.getpid()}"
    left = subprocess.Popen(
        ["sleep", "100"], start_new_session=True, env={**os.environ, MARK: mark}
    )
    owner(tmp_path, platform.node(), mark)
    time.sleep(0.1)
    with lock.hold(tmp_path) as former:
        assert former is not None
        assert former.pid == 999_999
    assert left.wait(5) == -9
    assert (tmp_path / lock.NAME).read_text() == ""


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(PrunebenchError, match="cannot write to"),
        lock.hold(tmp_path / "file" / "run"),
    ):
        pytest.fail("held")


def test_stages_are_taken_over_for_the_same_weights_only(tmp_path: Path) -> None:
    path = tmp_path / "x.partial.json"
    model = tiny_model("llama")
    result = PhaseMemory(phase="load", peak_rss_bytes=1)
    first = PartialResults(path)
    first.begin(model)
    assert first.get("perplexity 1", PhaseMemory) is None
    first.put("perplexity 1", [result])
    again = PartialResults(path)
    again.begin(model)
    assert again.get("perplexity 1", PhaseMemory) == [result]
    assert again.reused == ["perplexity 1"]
    before = fingerprint(model)
    next(model.parameters())[0, 0] += 1e-3
    assert fingerprint(model) != before
    other = PartialResults(path)
    other.begin(model)
    assert other.get("perplexity 1", PhaseMemory) is None
    path.write_text('{"weights": "x", "results": {"perplexity 1": 3')
    other.begin(model)
    assert other.get("perplexity 1", PhaseMemory) is None


def test_records_of_an_older_schema_are_read(monkeypatch) -> None:
    data = json.loads(to_json(record(cell())))
    del data["sha256"]
    assert from_json(json.dumps({**data, "schema": 1})) == record(cell())
    with pytest.raises(UnreadableRecordError, match="its checksum is missing"):
        from_json(json.dumps(data))
    monkeypatch.setitem(
        STEPS,
        1,
        lambda old: {
            **{key: value for key, value in old.items() if key != "was"},
            "status": old["was"],
        },
    )
    assert from_json(json.dumps({**data, "schema": 1, "was": "skipped"})).status == "skipped"


def test_order_and_spacing_are_no_damage_and_a_digit_is(tmp_path: Path) -> None:
    text = to_json(record(cell()))
    data = json.loads(text)
    assert from_json(json.dumps(dict(reversed(data.items())), separators=(",", ":"))) == record(
        cell()
    )
    assert data["sha256"] == checksum(
        {key: value for key, value in data.items() if key != "sha256"}
    )
    with pytest.raises(UnreadableRecordError, match="does not match"):
        from_json(text.replace("2026-01-01", "2026-01-02"))


def test_a_damaged_record_is_run_again_and_stays_beside(tmp_path: Path) -> None:
    one = cell()
    run = store(tmp_path / "run", one)
    run.record_path(one.id).parent.mkdir(exist_ok=True)
    run.record_path(one.id).write_text("torn")
    assert not run.finished(one)
    run.write(record(one))
    assert run.finished(one)
    assert run.record_path(one.id).with_suffix(".json.damaged").read_text() == "torn"
