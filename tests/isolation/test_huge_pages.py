"""Every process that times a model asks for huge pages, unless the user said otherwise."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from prunebench.isolation.huge_pages import NAME, ask_for_huge_pages
from rig import Rig

NOTING = """\
import os
from prunebench import Method, hookimpl
class Noting(Method):
    name = "noting"
    structure = {"none"}
    def prune(self, model, context):
        with open(os.environ["NOTED"], "w") as file:
            file.write(os.environ.get("THP_MEM_ALLOC_ENABLE", "nothing"))
@hookimpl
def prunebench_register_method():
    return Noting
"""


def test_the_users_word_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, "0")
    ask_for_huge_pages()
    assert os.environ[NAME] == "0"
    monkeypatch.delenv(NAME)
    ask_for_huge_pages()
    assert os.environ[NAME] == "1"


@pytest.mark.processes
def test_cells_have_huge_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NAME, raising=False)
    monkeypatch.setenv("NOTED", str(tmp_path / "noted"))
    rig = Rig(tmp_path)
    rig.plugin("noting", NOTING)
    done = rig.prunebench("run", rig.suite("noting"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "noted").read_text() == "1"
