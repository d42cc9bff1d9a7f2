"""Every Python block of the READMEs is run: a plugin on a small model, a script in an empty folder."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import prunebench
from in_process import FILE
from prunebench.plugin.files import with_files
from prunebench.plugin.host import load_plugins
from prunebench.plugin.registry import Registry
from prunebench.store.run_folder import RunStore
from readmes import ROOT, Block, block, blocks
from rig import Rig
from tiny import tiny_model

FINISHED_RUN = ROOT / "tests" / "store" / "before_the_move" / "run"

STAND_INS = {
    "smollm2-135m-instruct": "tiny-llama",  # nothing is downloaded
    'only=["wanda*", "magnitude*"]': (  # two cells instead of four, without processes of their own
        f'only=["magnitude*"], plugins=[{str(FILE)!r}], engine="in-process"'
    ),
}
"""What a script names, and what a test puts in its place."""


def load(block: Block, folder: Path) -> Registry:
    """The plugins, with the block as one that is a single file."""
    file = folder / "from_readme.py"
    file.write_text(block.code, encoding="utf-8")
    with with_files([file]):
        registry = load_plugins()
    assert not registry.problems
    return registry


def only_of_block(entries: dict[str, Any]) -> Any:
    [found] = [entry.value for entry in entries.values() if entry.distribution != "prunebench"]
    return found


def check_method(registry: Registry, _: Path) -> None:
    """It prunes a small model, and its docstring says what it does."""
    kind = only_of_block(registry["method"])
    assert kind.__doc__
    model, dense = tiny_model("llama"), tiny_model("llama")
    tokens = torch.randint(2, 300, (2, 16), generator=torch.Generator().manual_seed(5))
    context = prunebench.Context(tokens, 0, list(range(len(prunebench.anatomy(model).layers))))
    with torch.no_grad():
        kind(kind.Options()).prune(model, context)
    logits = model(tokens).logits
    assert bool(torch.isfinite(logits).all())
    assert not torch.equal(logits, dense(tokens).logits)


def check_section(registry: Registry, _: Path) -> None:
    """The report of a finished run has it, with a row for each of the fastest cells."""
    from prunebench_report import render

    section = only_of_block(registry["section"])
    page = render(RunStore.open(FINISHED_RUN), sections=[section])
    assert section.title in page
    [part] = re.findall(rf"<section[^>]*>\s*<h2[^>]*>{section.title}.*?</section>", page, re.DOTALL)
    assert part.count("<tr") > 1


def check_watcher(registry: Registry, folder: Path) -> None:
    """It writes a line for each record of a finished run."""
    records, _ = RunStore.open(FINISHED_RUN).records()
    for record in records:
        registry.notify("prunebench_cell_finished", cell=record.cell, record=record)
    rows = list(csv.reader((folder / "cells.csv").read_text().splitlines()))
    assert [row[2] for row in rows] == [record.status for record in records]
    assert all(float(row[3]) > 1 for row in rows if row[2] == "ok")


CHECKS = {
    "prunebench_register_method": check_method,
    "prunebench_register_report_section": check_section,
    "prunebench_cell_finished": check_watcher,
}


def hook_of(block: Block) -> str | None:
    found = re.search(r"^def (prunebench_\w+)", block.code, re.MULTILINE)
    return found and found[1]


@pytest.mark.parametrize("block", [one for one in blocks("python") if hook_of(one)], ids=str)
def test_every_plugin_works(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    CHECKS[hook_of(block) or ""](load(block, tmp_path), tmp_path)


@pytest.mark.parametrize("block", [one for one in blocks("python") if not hook_of(one)], ids=str)
def test_every_script_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "cache"))
    code = block.code
    for written, instead in STAND_INS.items():
        code = code.replace(written, instead)
    names: dict[str, Any] = {}
    exec(compile(code, str(block), "exec"), names)
    if "frame" in names:
        assert isinstance(names["frame"], pd.DataFrame)
        assert list(names["frame"]["method"]) == ["dense", "magnitude"]
    if "result" in names:
        pruned = names["result"].model
        ids = torch.arange(8)[None]
        assert torch.equal(names["model"](ids).logits, pruned(ids).logits)


def test_every_stand_in_stands_for_something() -> None:
    code = "".join(one.code for one in blocks("python"))
    assert all(written in code for written in STAND_INS)


def test_the_plugin_of_the_front_page_runs_by_the_command_beside_it(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    (tmp_path / "mine.py").write_text(block("python", "class Mine").code)
    suite = rig.suite("mine: {sparsity: 0.25}")
    shutil.move(suite, tmp_path / "my-suite.yaml")
    [command] = [
        line.removeprefix("prunebench ").split()
        for line in block("sh", "run my-suite.yaml").code.splitlines()
        if "run my-suite.yaml" in line
    ]
    done = rig.run(*command[1:])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mine sparsity=0.25: ok" in done.stdout
    assert "sparsity 25.0%" in done.stdout
