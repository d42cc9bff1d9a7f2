"""Every command in terminals of 60, 80 and 120 columns: no word, id or name is broken."""

from __future__ import annotations

import re
from shutil import copytree

import pytest

from cli_calls import call
from prunebench.cli import COMMANDS
from prunebench.measure.devices.disturbance import CpuWatch
from rig import Rig

WIDTHS = (60, 80, 120)
SLOW = ("run", "prune", "profile", "plugins check")
"""Tried in the narrowest terminal only: it is the one that breaks lines."""


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    """A rig with two finished runs of five cells, one of them failed."""
    rig = Rig(tmp_path_factory.mktemp("widths"))
    methods = [
        "magnitude: {sparsity: [0.3, 0.5, 2:4]}",
        "shortgpt: {count: 1}",
        "wanda: {sparsity: 0.5}",
    ]
    suite = rig.suite(*methods, more="seeds: [0, 1]", latency=True)
    # A fixture of a module comes before the one of each test that does the same.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CpuWatch, "disturbed", lambda *_: None)
        assert rig.run(suite, "--out", "runs/a").returncode == 0
    copytree(rig.folder / "runs/a", rig.folder / "runs/b")
    return rig


CASES = {
    "run": ["run", "tiny.yaml", "--out", "runs/a"],
    "suites": ["suites"],
    "plan": ["plan", "tiny.yaml", "--out", "runs/a"],
    "prune": ["prune", "./model", "magnitude", "--out", "pruned", "--force"],
    "check": ["check", "./model"],
    "profile": ["profile", "./model", "--prompt", "4", "--new-tokens", "2", "--min-time", "0"],
    "report": ["report", "runs/a"],
    "compare": ["compare", "runs/a", "runs/b", "--fail-on", "quality:1%,speed:0"],
    "families": ["families", "./model"],
    "doctor": ["doctor", "--offline"],
    "plugins": ["plugins"],
    "plugins show": ["plugins", "show", "sparsegpt"],
    "plugins check": ["plugins", "check", "magnitude", "--family", "llama"],
}
DATA = {"export", "schema"}
"""Print data for programs, whatever the terminal."""


def test_every_command_is_tried():
    assert {name.split()[0] for name in CASES} | DATA == set(COMMANDS)


@pytest.mark.parametrize(
    ("name", "width"),
    [(name, width) for name in CASES for width in WIDTHS if name not in SLOW or width == WIDTHS[0]],
)
def test_no_line_is_wider_than_the_terminal(rig, monkeypatch, name, width):
    monkeypatch.setenv("COLUMNS", str(width))
    done = rig.invoke(*CASES[name])
    assert done.returncode in (0, 1, 3), done.stderr
    for line in done.stdout.splitlines():
        if len(line) > width:
            # Only what cannot be broken without harm: a path, a command to copy, a single word.
            assert re.match(
                r"\s*(\S+$|report: |next: |A: |load it|profile it|check it|saved in|"
                r"AutoModelForCausalLM|python -m |optimum-cli |vllm serve |prunebench prune )",
                line,
            )


@pytest.mark.parametrize("width", WIDTHS)
def test_the_end_of_a_run_names_every_cell(rig, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    done = rig.invoke(*CASES["run"])
    words = {word for line in done.stdout.splitlines() for word in line.split()[:3]}
    assert {
        "dense",
        "magnitude",
        "sparsity=0.3",
        "sparsity=0.5",
        "sparsity=2:4",
        "count=1",
    } <= words
    assert "Perplexity" in done.stdout


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits(monkeypatch, command, width):
    monkeypatch.setenv("COLUMNS", str(width))
    lines = call(*([command] if command else []), "--help").out.splitlines()
    assert lines
    assert max(map(len, lines)) <= width
