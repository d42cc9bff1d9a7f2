"""A file that somebody names with --plugin is used, or the command says at once why not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from prunebench.cli import prunebench as command
from prunebench.errors import PrunebenchError
from prunebench.plugin.files import with_files
from prunebench.plugin.host import load_chosen_plugins, load_plugins

SOURCE = '''"""Drop the smallest."""

from prunebench import LinearMethod, hookimpl


class Mine(LinearMethod):
    """Drop the smallest."""

    name = "mine"

    def score(self, weight, stats):
        return weight.abs()


@hookimpl
def prunebench_register_method():
    return Mine
'''

FAULTS = {
    "a built-in's name": (
        ('name = "mine"', 'name = "wanda"'),
        "mine.py: the method 'wanda' is already registered by prunebench ",
        "give yours another name",
    ),
    "a misspelt hook": (
        ("register_method", "register_methods"),
        "mine.py: implements the unknown hook prunebench_register_methods",
        "did you mean 'prunebench_register_method'?",
    ),
    "a misspelt hook without a mark": (
        ("@hookimpl\ndef prunebench_register_method", "def prunebench_register_metod"),
        "mine.py: implements the unknown hook prunebench_register_metod",
        "did you mean 'prunebench_register_method'?",
    ),
    "a hook without its prefix": (
        ("prunebench_register_method", "register_method"),
        "mine.py: implements the unknown hook register_method",
        "did you mean 'prunebench_register_method'?",
    ),
    "no hook": (
        ("@hookimpl\ndef prunebench_register_method", "def register"),
        "mine.py: implements no hook, so it registers nothing",
        "decorated with @hookimpl, that returns your class",
    ),
    "an unknown group": (
        ('name = "mine"', 'name = "mine"; group = "column"'),
        "mine.py: prunebench_register_method: Mine.group is 'column': known: matrix, row",
        "",
    ),
    "a misspelt structure": (
        ('name = "mine"', 'name = "mine"; structure = {"unstructred"}'),
        "Mine.structure names 'unstructred': did you mean 'unstructured'?",
        "",
    ),
    "a misspelt statistic": (
        ('name = "mine"', 'name = "mine"; statistics = {"input_norms"}'),
        "Mine.statistics names 'input_norms', which does not exist: did you mean 'input_norm'?",
        "",
    ),
    "a statistic that is no set": (
        ('name = "mine"', 'name = "mine"; statistics = "input_norm"'),
        "Mine.statistics is 'input_norm', expected a set of names",
        "",
    ),
    "a name that is not defined": (
        ("return Mine", "return Mein"),
        "mine.py: NameError: name 'Mein' is not defined: mine.py:17",
        "",
    ),
    "a syntax error": (("class Mine(", "class Mine(("), "mine.py: SyntaxError: ", ""),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("words", [("plugins", "check", "mine"), ("run", "smoke")], ids=str)
def test_a_file_that_cannot_be_used_is_an_error_that_says_why(
    tmp_path: Path, fault: str, words: tuple[str, ...]
) -> None:
    change, message, hint = FAULTS[fault]
    assert change[0] in SOURCE
    file = tmp_path / "mine.py"
    file.write_text(SOURCE.replace(*change))
    done = CliRunner().invoke(command, [*words, "--plugin", str(file)])
    assert isinstance(done.exception, PrunebenchError)
    assert message in done.exception.message
    assert hint in (done.exception.hint or "")


def test_a_list_of_plugins_shows_such_a_file_among_the_others(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(SOURCE.replace("register_method", "register_methods"))
    done = CliRunner().invoke(command, ["plugins", "--plugin", str(file)])
    assert done.exit_code == 0
    assert "unknown hook prunebench_register_methods (did you mean" in done.output


def test_a_file_wins_over_an_installed_plugin_and_the_same_file_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "installed_mine.py").write_text(SOURCE)
    (tmp_path / "other.py").write_text(SOURCE)
    info = tmp_path / "prunebench_mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: prunebench-mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[prunebench]\nmine = installed_mine\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_plugins()["method"]["mine"].distribution == "prunebench-mine"
    for name, message in (
        ("other.py", "already registered by other.py"),
        ("installed_mine.py", "--plugin names the same file"),
    ):
        with with_files([tmp_path / name]):
            registry = load_chosen_plugins()
        assert registry["method"]["mine"].distribution == name
        [problem] = registry.problems
        assert problem.distribution == "prunebench-mine"
        assert message in problem.message
    sys.modules.pop("installed_mine", None)
