"""Paths are bytes: a name that is not UTF-8 works as any other, and nothing of the user's is lost."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

import prunebench
from prunebench.app.plan import SuiteRequest, plan_suite
from prunebench.byte_path import path_text, shell_command, temporary_parent, text_path, utf8_path
from prunebench.cli import prunebench as command
from prunebench.errors import PrunebenchError, printable
from prunebench.model.cache import file_sha256
from prunebench.model.source import resolve
from prunebench.suite import yaml
from task_folder import arc_rows, write
from tiny import tiny_checkpoint

BYTE = "\udce9"  # how Python reads the byte E9, which is no UTF-8
IDS = torch.arange(20)[None] * 7 % 300
names = st.binary(min_size=1, max_size=20).filter(lambda name: not set(name) & set(b"/\0"))


@given(names)
def test_any_path_comes_back_from_its_text(name: bytes) -> None:
    path = Path("/tmp") / os.fsdecode(name)
    text = path_text(path)
    assert text.encode()
    assert text_path(text) == path
    if text != str(path):
        assert text.startswith("file:///tmp/")


def test_the_text_of_a_usual_path_is_the_path() -> None:
    assert path_text("models/café 100%") == "models/café 100%"
    assert path_text(f"/data/caf{BYTE}") == "file:///data/caf%E9"
    assert path_text(f"caf{BYTE}") == f"{Path.cwd().as_uri()}/caf%E9"


@given(st.lists(names, min_size=1, max_size=4))
def test_a_command_is_read_back_by_a_shell(words: list[bytes]) -> None:
    line = shell_command(["printf", r"%s\0", *map(os.fsdecode, words)])
    done = subprocess.run(["bash", "-c", line.encode()], capture_output=True, check=True)
    assert done.stdout.split(b"\0")[:-1] == words


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("café", "café"),
        (f"caf{BYTE}", r"caf\xe9"),
        ("half \ud83d", r"half \ud83d"),
        ("\udcff\udc80", r"\xff\x80"),
    ],
)
def test_what_is_no_character_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert printable(text) == shown
    error = PrunebenchError(text, hint=text)
    assert (error.message, error.hint, str(error)) == (shown, shown, f"{shown} ({shown})")


def test_libraries_get_a_path_that_is_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / f"caf{BYTE}"
    folder.mkdir()
    with utf8_path(folder) as path:
        assert str(path).encode()
        (path / "file").touch()
    assert not path.exists()
    assert [entry.name for entry in folder.iterdir()] == ["file"]
    with utf8_path(tmp_path) as path:
        assert path == tmp_path
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    assert temporary_parent().encode()


def test_a_value_on_the_command_line_may_be_such_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"caf{BYTE}").touch()
    assert yaml.parse_value(f"caf{BYTE}", "here") == f"{tmp_path.as_uri()}/caf%E9"
    with pytest.raises(PrunebenchError, match=r"\[caf\\xe9\]: it is not UTF-8") as caught:
        yaml.parse_value(f"[caf{BYTE}]", f"--set models=[caf{BYTE}]")
    assert "file:///tmp/caf%E9" in (caught.value.hint or "")


def test_a_pair_of_escapes_in_a_suite_is_one_character() -> None:
    assert yaml.parse(r'name: "\ud83d\ude00"', "s.yaml").data == {"name": "😀"}
    with pytest.raises(PrunebenchError, match=r"s\.yaml:2: half of a surrogate pair"):
        yaml.parse('a: 1\nname: "\\ud83d"', "s.yaml")


def test_a_large_file_is_hashed_and_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / f"cache{BYTE}"))
    for name in (f"a{BYTE}", "b"):
        (tmp_path / name).write_bytes(bytes(2_000_000))
        os.utime(tmp_path / name, (1e9, 1e9))
    digests = {file_sha256(tmp_path / name) for name in (f"a{BYTE}", "b", f"a{BYTE}")}
    assert len(digests) == 1
    assert len(list((tmp_path / f"cache{BYTE}" / "sha256").iterdir())) == 2


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, a cache, a model and text, all with the byte in their names."""
    folder = tmp_path / f"work{BYTE}"
    folder.mkdir()
    tiny_checkpoint(tmp_path / "tiny").rename(folder / f"model{BYTE}")
    (folder / f"text{BYTE}.txt").write_text("the quick brown fox jumps over the lazy dog. " * 99)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(folder / "cache"))
    return folder


def call(*arguments: str) -> Result:
    done = CliRunner().invoke(command, list(arguments))
    assert done.exit_code == 0, done.output
    return done


CALIBRATION = ["--calibration", f"corpus=text{BYTE}.txt"] + [
    word for pair in ("windows=2", "length=16") for word in ("--calibration", pair)
]


@pytest.mark.processes
@pytest.mark.parametrize(
    "options",
    [
        ["wanda", "sparsity=0.5"],
        ["wanda", "sparsity=0.5", "--stream"],
        ["blockpruner", "count=2", "blocks=mlp"],
        ["blockpruner", "count=2", "blocks=mlp", "--format", "decilm"],
    ],
    ids=" ".join,
)
def test_a_model_is_pruned_into_such_a_folder(home: Path, options: list[str]) -> None:
    out = f"out{BYTE}"
    for _ in range(2):  # the second time over the first
        call("prune", f"model{BYTE}", *options, "--out", out, "--force", *CALIBRATION)
    names = {path.name for path in (home / out).iterdir()}
    assert {"config.json", "tokenizer.json"} <= names
    assert not [path for path in home.iterdir() if path.name.startswith(".tmp")]
    if "decilm" not in options:
        assert prunebench.load_pruned(home / out)(IDS).logits.isfinite().all()
        assert call("prune", f"./{out}", "dense", "--out", "again")


@pytest.mark.processes
def test_a_model_is_profiled(home: Path) -> None:
    shape = ["--prompt", "4", "--new-tokens", "3", "--min-time", "0"]
    call("profile", f"model{BYTE}", *shape, "--json", f"profile{BYTE}.json")
    assert json.loads((home / f"profile{BYTE}.json").read_text())["model"] == r"model\xe9"


PLUGIN = """
import os
from prunebench import Method, hookimpl

class Telling(Method):
    name = "telling"
    summary = "notes the folder"
    def prune(self, model, context):
        context.notes[os.getcwd()] = [__file__]
        context.log.warning("in %s", os.getcwd())

class Raising(Method):
    name = "raising"
    summary = "raises with the folder in its message"
    def prune(self, model, context):
        raise RuntimeError("in " + os.getcwd())

@hookimpl
def prunebench_register_method():
    return [Telling, Raising]
"""


@pytest.mark.processes
def test_a_run_in_such_a_folder_is_a_run(home: Path) -> None:
    """One run with every kind of file that a suite can name, its report and its exports."""
    (home / f"plugin{BYTE}.py").write_text(PLUGIN)
    write(home / f"tasks{BYTE}" / "arc_easy" / "test.jsonl", arc_rows(3))
    text = f"text{BYTE}.txt"
    suite = {
        "name": "bytes",
        "models": [f"./model{BYTE}"],
        "methods": ["telling", "raising", {"wanda": {"sparsity": 0.5}}],
        "calibration": {"corpus": text, "windows": 2, "length": 16},
        "quality": {
            "perplexity": {"corpus": text, "length": 16, "windows": 2},
            "tasks": {"task": "arc_easy", "data": f"tasks{BYTE}"},
        },
        "profile": None,
    }
    out = f"run{BYTE}"
    table = prunebench.run(suite, out=out, plugins=[f"plugin{BYTE}.py"])
    assert list(table.status) == ["ok", "ok", "failed", "ok"]
    assert set(table.model) == {r"model\xe9"}
    records = [json.loads(path.read_text()) for path in (home / out / "cells").glob("*.json")]
    [failed] = [record for record in records if record["status"] == "failed"]
    assert r"work\xe9: plugin\xe9.py:16" in failed["error"]["message"]
    assert failed["cell"]["model"]["location"].startswith("file:///")
    [told] = [record for record in records if record["method_notes"]]
    assert next(iter(told["method_notes"])).endswith(r"work\xe9")
    line = failed["error"]["command"]
    assert line.isascii()
    again = subprocess.run(["bash", "-c", line], capture_output=True, check=False)
    assert b'"status": "failed"' in again.stdout
    [log] = [path for path in (home / out / "cells").glob("*.log") if "in /" in path.read_text()]
    assert rf"in {home.parent}/work\udce9" in log.read_text()
    assert "work" in (home / out / "report.html").read_text(encoding="utf-8")
    for form in ("csv", "json", "parquet", "sqlite"):
        call("export", out, "--out", f"table{BYTE}.{form}")
        assert (home / f"table{BYTE}.{form}").stat().st_size
    call("report", out)
    call("compare", out, out)


@pytest.mark.processes
def test_the_same_model_under_another_name_is_the_same_experiment(home: Path) -> None:
    ref = resolve(f"model{BYTE}", base=home, assets={})
    (home / f"model{BYTE}").rename(home / "plain")
    plain = resolve("plain", base=home, assets={})
    assert plain.identity() == ref.identity()
    assert text_path(ref.location) == home / f"model{BYTE}"


@pytest.mark.processes
def test_what_is_not_there_is_named_in_one_sentence(home: Path) -> None:
    suite = {"name": "s", "models": [f"no{BYTE}"], "methods": ["dense"]}
    with pytest.raises(PrunebenchError, match=r"no\\xe9 does not exist"):
        plan_suite(SuiteRequest(suite))
    with pytest.raises(PrunebenchError, match=r"no\\xe9\.yaml"):
        plan_suite(SuiteRequest(f"no{BYTE}.yaml"))
    write(home / "tasks" / "arc_easy" / f"test-{BYTE}.jsonl", arc_rows(3))
    suite |= {"models": ["tiny-llama"], "quality": {"tasks": {"task": "arc_easy", "data": "tasks"}}}
    with pytest.raises(PrunebenchError, match=r"test-\\xe9\.jsonl is not UTF-8 .*rename the file"):
        plan_suite(SuiteRequest(suite))
