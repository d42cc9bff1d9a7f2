"""Discovery: every sound plugin is there, every broken one is named, none disturbs another."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from prunebench.plugin import host
from prunebench.plugin.host import RESTRICT, load_plugins
from prunebench.plugin.registry import Registry

GOOD = """
from prunebench import Method, hookimpl
class Mine(Method):
    name = "{name}"
    def prune(self, model, context): pass
@hookimpl
def prunebench_register_method():
    return Mine
"""


class Distribution(importlib.metadata.Distribution):
    """A distribution that exists in name only."""

    def __init__(self, name: str, version: str) -> None:
        self._metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"

    def read_text(self, filename: str) -> str | None:
        return self._metadata if filename == "METADATA" else None

    def locate_file(self, path: object) -> Path:
        return Path(str(path))


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Load modules given as source text, each as a plugin of a distribution of its own."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv(RESTRICT, raising=False)
    written: list[str] = []

    def loader(**sources: str) -> Registry:
        points = []
        for name, source in sources.items():
            module = f"plugin_under_test_{name}"
            (tmp_path / f"{module}.py").write_text(source)
            written.append(module)
            point = EntryPoint(name, module, "prunebench")
            vars(point)["dist"] = Distribution(f"dist-{name}", "1.2.3")
            points.append(point)
        return load_plugins(points)

    yield loader
    for module in written:
        sys.modules.pop(module, None)


def test_the_built_ins_are_found_by_entry_points() -> None:
    registry = load_plugins()
    assert not [problem for problem in registry.problems if problem.distribution == "prunebench"]
    assert {"dense", "random", "magnitude", "wanda", "shortgpt"} <= set(registry["method"])
    assert "smollm2-135m-instruct" in registry["model"]
    assert {"boolq-passages", "wikitext2", "ptb", "c4", "alpaca", "pg19", "bookcorpus"} <= set(
        registry["corpus"]
    )
    assert {entry.distribution for entry in registry.entries()} >= {"prunebench"}


BROKEN = {
    "import error": ("import no_such_module_at_all", "No module named 'no_such_module_at_all'"),
    "syntax error": ("def broken(:", "invalid syntax"),
    "exit": ("raise SystemExit(3)", "SystemExit"),
    "not a method": (
        "from prunebench import hookimpl\n@hookimpl\ndef prunebench_register_method():\n    return 42\n",
        "returned 42, not a subclass of prunebench.Method",
    ),
    "abstract": (
        GOOD.format(name="m").replace("def prune(self, model, context): pass", ""),
        "Mine does not define prune",
    ),
    "no name": (GOOD.replace('name = "{name}"', "pass"), "has no name"),
    "raising hook": (
        "from prunebench import hookimpl\n@hookimpl\ndef prunebench_register_method():\n    raise OSError('disk')\n",
        "disk",
    ),
    "unknown hook": (
        "from prunebench import hookimpl\n@hookimpl\ndef prunebench_register_metod():\n    return None\n",
        "the unknown hook prunebench_register_metod",
    ),
    "task data with a name that is taken": (
        (
            "from prunebench import TaskData, hookimpl\n"
            "class Mine(TaskData):\n    name = 'hub'\n    def splits(self, task): return {}\n"
            "@hookimpl\ndef prunebench_register_task_data():\n    return Mine()\n"
        ),
        "the name 'hub' is reserved; choose another",
    ),
    "no task data": (
        "from prunebench import hookimpl\n@hookimpl\ndef prunebench_register_task_data():\n    return {}\n",
        "not a prunebench.TaskData object",
    ),
    "metric without a direction": (
        (
            "from prunebench import Metric, hookimpl\n"
            "class Mine(Metric):\n    name = 'mine'\n    def measure(self, model, tokenizer, context): return 1.0\n"
            "@hookimpl\ndef prunebench_register_metric():\n    return Mine\n"
        ),
        "Mine.higher_is_better must be a bool",
    ),
    "metric with an option that suites need": (
        (
            "import prunebench\nfrom prunebench import Metric, hookimpl\n"
            "class Mine(Metric):\n    name = 'mine'\n    higher_is_better = True\n"
            "    class Options(prunebench.Options):\n        data: int = 1\n"
            "    def measure(self, model, tokenizer, context): return 1.0\n"
            "@hookimpl\ndef prunebench_register_metric():\n    return Mine\n"
        ),
        "Mine has an option 'data', which is a key of suites",
    ),
    "an engine with a name that is taken": (
        (
            "from prunebench import Engine, hookimpl\n"
            "class Mine(Engine):\n    name = 'ray'\n    def run(self, cells, context): yield from ()\n"
            "@hookimpl\ndef prunebench_register_engine():\n    return Mine\n"
        ),
        "the name 'ray' is reserved; choose another",
    ),
    "no engine": (
        "from prunebench import hookimpl\n@hookimpl\ndef prunebench_register_engine():\n    return dict\n",
        "not a subclass of prunebench.Engine",
    ),
    "not marked": (
        GOOD.format(name="m").replace("@hookimpl\n", ""),
        "prunebench_register_method is not marked as a hook implementation (decorate it with @hookimpl",
    ),
    "unknown specname": (
        GOOD.format(name="m").replace(
            "@hookimpl", '@hookimpl(specname="prunebench_register_metod")'
        ),
        "the unknown hook prunebench_register_metod",
    ),
    "wrapper": (
        (
            "from prunebench import hookimpl\n"
            "@hookimpl(wrapper=True)\ndef prunebench_register_method():\n    return (yield)\n"
        ),
        "implements prunebench_register_method as a wrapper",
    ),
    "one of two hooks raises": (
        GOOD.format(name="lost")
        + "@hookimpl\ndef prunebench_register_corpus():\n    raise OSError('disk')\n",
        "OSError: disk",
    ),
    "wrong API": (
        "PRUNEBENCH_API = 99\n" + GOOD.format(name="late"),
        "plugin API 99, this prunebench has API 1",
    ),
    "wrong hook argument": (
        "from prunebench import hookimpl\n@hookimpl\ndef prunebench_cell_started(sell):\n    return None\n",
        "sell",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_plugin_is_a_named_problem_and_the_others_load(load, fault: str) -> None:
    source, words = BROKEN[fault]
    registry = load(a=GOOD.format(name="first"), broken=source, z=GOOD.format(name="last"))
    assert set(registry["method"]) == {"first", "last"}
    [problem] = registry.problems
    assert (problem.plugin, problem.distribution, problem.version) == (
        "broken",
        "dist-broken",
        "1.2.3",
    )
    assert words in problem.message


def test_a_broken_plugin_observes_nothing(load) -> None:
    observer = "\n@hookimpl\ndef prunebench_cell_started(cell): raise AssertionError\n"
    wrong_argument = "\n@hookimpl\ndef prunebench_cell_finished(sell): return None\n"
    raising = "\n@hookimpl\ndef prunebench_register_corpus(): raise OSError\n"
    registry = load(
        a=GOOD.format(name="a") + observer + wrong_argument,
        b=GOOD.format(name="b") + observer + raising,
    )
    assert not registry.entries()
    assert registry.hooks.hook.prunebench_cell_started.get_hookimpls() == []


def test_a_function_of_any_name_can_implement_a_hook(load) -> None:
    """`specname` names the hook; one module may then implement it more than once."""
    source = GOOD.replace("@hookimpl", '@hookimpl(specname="prunebench_register_method")')
    source = source.replace("def prunebench_register_method", "def {name}")
    source = source.replace("Mine", "Of_{name}")
    registry = load(a=source.format(name="first") + source.format(name="second"))
    assert not registry.problems
    assert set(registry["method"]) == {"first", "second"}


def test_a_hook_that_this_version_lacks_may_be_optional(load) -> None:
    later = "@hookimpl(optionalhook=True)\ndef prunebench_register_tomorrow(): return None\n"
    registry = load(a=GOOD.format(name="mine") + later)
    assert not registry.problems
    assert set(registry["method"]) == {"mine"}


@pytest.mark.parametrize(
    ("marks", "used"),
    [
        (("", ""), "dist-a"),
        (("", "(tryfirst=True)"), "dist-b"),
        (("(trylast=True)", ""), "dist-b"),
        (("(tryfirst=True)", "(tryfirst=True)"), "dist-a"),
    ],
)
def test_tryfirst_and_trylast_decide_which_of_two_equal_names_is_used(
    load, marks: tuple[str, str], used: str
) -> None:
    a, b = (GOOD.format(name="same").replace("@hookimpl", f"@hookimpl{mark}") for mark in marks)
    assert load(a=a, b=b)["method"]["same"].distribution == used


def test_not_even_tryfirst_takes_the_name_of_a_built_in(load, monkeypatch) -> None:
    monkeypatch.setattr(host, "NAME", "dist-z")  # the distribution whose plugins are built in
    source = GOOD.format(name="same")
    registry = load(a=source.replace("@hookimpl", "@hookimpl(tryfirst=True)"), z=source)
    assert registry["method"]["same"].distribution == "dist-z"
    assert [problem.distribution for problem in registry.problems] == ["dist-a"]


def test_tryfirst_orders_observers_too(load) -> None:
    observer = "from prunebench import hookimpl\n@hookimpl{}\ndef prunebench_cell_started(cell): cell.append('{}')\n"
    registry = load(
        a=observer.format("", "a"),
        b=observer.format("(tryfirst=True)", "b"),
        c=observer.format("", "c"),
    )
    told: list[str] = []
    registry.notify("prunebench_cell_started", cell=told)
    assert told == ["b", "a", "c"]


def test_the_same_module_under_two_names_is_one_plugin_and_one_problem(load, tmp_path) -> None:
    registry = load(a=GOOD.format(name="mine"))
    module = "plugin_under_test_a"
    twice = [EntryPoint(name, module, "prunebench") for name in ("one", "two")]
    registry = load_plugins(twice)
    assert set(registry["method"]) == {"mine"}
    [problem] = registry.problems
    assert "already registered" in problem.message


def test_the_first_of_two_equal_names_is_used_and_the_second_is_a_problem(load) -> None:
    registry = load(a=GOOD.format(name="same"), b=GOOD.format(name="same"))
    assert registry["method"]["same"].distribution == "dist-a"
    [problem] = registry.problems
    assert problem.distribution == "dist-b"
    assert "already registered by dist-a 1.2.3" in problem.message


@pytest.mark.parametrize(
    ("setting", "loaded"),
    [
        ("", set()),
        ("a", {"one"}),
        ("dist-b", {"two"}),
        ("a,b", {"one", "two"}),
        ("-a", {"two"}),
        ("a,b,-b", {"one"}),
    ],
)
def test_the_environment_restricts_plugins(
    load, monkeypatch, setting: str, loaded: set[str]
) -> None:
    monkeypatch.setenv(RESTRICT, setting)
    registry = load(a=GOOD.format(name="one"), b=GOOD.format(name="two"))
    assert set(registry["method"]) == loaded
    assert {problem.status for problem in registry.problems} <= {"disabled"}
    assert len(registry["method"]) + len(registry.problems) == 2


def test_an_observer_that_raises_disturbs_nobody(load, caplog) -> None:
    observer = "from prunebench import hookimpl\nseen = []\n@hookimpl\ndef prunebench_cell_started(cell):\n    "
    registry = load(a=observer + "raise ValueError('no')\n", b=observer + "seen.append(cell)\n")
    registry.notify("prunebench_cell_started", cell="the cell")
    assert sys.modules["plugin_under_test_b"].seen == ["the cell"]
    assert "plugin" in caplog.text


def test_a_plugin_may_import_torch_at_its_top_without_loading_it(tmp_path: Path) -> None:
    """In a process of its own, since this one has torch."""
    (tmp_path / "late.py").write_text(
        "import torch\nfrom prunebench import Context, LinearMethod, LinearStats, anatomy\n"
        "def now(): return torch.zeros(2)\n"
    )
    code = (
        "import sys; from prunebench.plugin.lazy_imports import heavy_imports_later\n"
        "with heavy_imports_later():\n    import late\n"
        "assert 'torch' not in sys.modules\n"
        "assert late.now().shape == (2,) and 'torch' in sys.modules\n"
        "import torch; assert isinstance(late.now(), torch.Tensor)\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(tmp_path)}, timeout=60
    )


def test_plugins_json_needs_no_torch() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from prunebench.cli import prunebench\n"
        "result = CliRunner().invoke(prunebench, ['plugins', '--json'])\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
        "print(result.output)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    rows = {(row["kind"], row["name"]): row for row in json.loads(out)}
    wanda = rows["method", "wanda"]
    assert wanda["distribution"] == "prunebench"
    assert wanda["status"] == "ok"
    assert Path(wanda["origin"]).name == "wanda.py"
