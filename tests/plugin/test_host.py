"""Loading: every valid plugin is used, every broken one is a problem with its name on it."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from prunebench.plugin import host
from prunebench.plugin.host import RESTRICT, built_in_modules, load_plugins
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


def test_the_modules_of_the_built_ins_are_known_before_they_are_loaded(monkeypatch) -> None:
    assert {"prunebench_plugins.wanda", "prunebench_plugins.dense"} <= set(built_in_modules())
    assert all(name.startswith("prunebench_plugins.") for name in built_in_modules())
    monkeypatch.setenv(RESTRICT, "wanda")
    assert built_in_modules() == ["prunebench_plugins.wanda"]


def hook(name: str, body: str, mark: str = "@hookimpl") -> str:
    """A module with one hook."""
    return f"import prunebench\nfrom prunebench import hookimpl\n{mark}\ndef {name}: {body}\n"


def registering(kind: str, of_class: str) -> str:
    """A module that registers the class ``Mine``."""
    return of_class + hook(f"prunebench_register_{kind}()", "return Mine")


RAISING = hook("prunebench_register_corpus()", "raise OSError('disk')")
TASK_DATA = """
import prunebench
class Mine(prunebench.TaskData):
    name = "hub"
    def splits(self, task): return {}
"""
METRIC = """
import prunebench
class Mine(prunebench.Metric):
    name = "mine"
    def measure(self, model, tokenizer, context): return 1.0
"""
METRIC_WITH_DATA = """
    higher_is_better = True
    class Options(prunebench.Options):
        data: int = 1
"""
ENGINE = """
import prunebench
class Mine(prunebench.Engine):
    name = "ray"
    def run(self, cells, context): yield from ()
"""
BROKEN = {
    "import error": ("import no_such_module_at_all", "No module named 'no_such_module_at_all'"),
    "syntax error": ("def broken(:", "invalid syntax"),
    "exit": ("raise SystemExit(3)", "SystemExit"),
    "not a method": (
        hook("prunebench_register_method()", "return 42"),
        "returned 42, not a subclass of prunebench.Method",
    ),
    "abstract": (
        GOOD.format(name="m").replace("def prune(self, model, context): pass", ""),
        "Mine does not define prune",
    ),
    "no name": (GOOD.replace('name = "{name}"', "pass"), "has no name"),
    "raising hook": (RAISING, "OSError: disk"),
    "unknown hook": (
        hook("prunebench_register_metod()", "return None"),
        "the unknown hook prunebench_register_metod",
    ),
    "reserved name of task data": (
        registering("task_data", TASK_DATA).replace("return Mine", "return Mine()"),
        "the name 'hub' is reserved; choose another",
    ),
    "no task data": (
        hook("prunebench_register_task_data()", "return {}"),
        "not a prunebench.TaskData object",
    ),
    "metric without a direction": (
        registering("metric", METRIC),
        "Mine.higher_is_better must be a bool",
    ),
    "metric with an option that is a key of suites": (
        registering("metric", METRIC + METRIC_WITH_DATA),
        "Mine has an option 'data', which is a key of suites",
    ),
    "reserved name of an engine": (
        registering("engine", ENGINE),
        "the name 'ray' is reserved; choose another",
    ),
    "not an engine": (
        hook("prunebench_register_engine()", "return dict"),
        "not a subclass of prunebench.Engine",
    ),
    "not marked": (
        hook("prunebench_register_method()", "return []", mark=""),
        "is not marked as a hook implementation (decorate it with @hookimpl",
    ),
    "unknown specname": (
        hook("mine()", "return []", mark='@hookimpl(specname="prunebench_register_metod")'),
        "the unknown hook prunebench_register_metod",
    ),
    "wrapper": (
        hook("prunebench_register_method()", "return (yield)", mark="@hookimpl(wrapper=True)"),
        "implements prunebench_register_method as a wrapper",
    ),
    "one of two hooks raises": (GOOD.format(name="lost") + RAISING, "OSError: disk"),
    "wrong API": (
        "PRUNEBENCH_API = 99\n" + GOOD.format(name="late"),
        "plugin API 99, this prunebench has API 1",
    ),
    "wrong hook argument": (hook("prunebench_cell_started(sell)", "return None"), "sell"),
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
    observer = hook("prunebench_cell_started(cell)", "raise AssertionError")
    wrong_argument = hook("prunebench_cell_finished(sell)", "return None")
    registry = load(
        a=GOOD.format(name="a") + observer + wrong_argument,
        b=GOOD.format(name="b") + observer + RAISING,
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
    marks = {"a": "@hookimpl", "b": "@hookimpl(tryfirst=True)", "c": "@hookimpl"}
    registry = load(
        **{
            name: hook("prunebench_cell_started(cell)", f"cell.append('{name}')", mark)
            for name, mark in marks.items()
        }
    )
    told: list[str] = []
    registry.notify("prunebench_cell_started", cell=told)
    assert told == ["b", "a", "c"]


def test_the_same_module_under_two_names_is_one_plugin_and_one_problem(load) -> None:
    load(a=GOOD.format(name="mine"))
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


def test_an_observer_that_raises_does_not_stop_the_others(load, caplog) -> None:
    registry = load(
        a=hook("prunebench_cell_started(cell)", "raise ValueError('no')"),
        b="seen = []\n" + hook("prunebench_cell_started(cell)", "seen.append(cell)"),
    )
    registry.notify("prunebench_cell_started", cell="the cell")
    assert sys.modules["plugin_under_test_b"].seen == ["the cell"]
    assert "prunebench_cell_started of dist-a:a raised" in caplog.text
