"""Tables of the READMEs that repeat what the code knows, held against the code."""

from __future__ import annotations

import re
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from prunebench.measure.quality.protocols import DEFAULT, PROTOCOLS
from prunebench.plugin import hookspecs
from prunebench.plugin.host import load_plugins
from prunebench.plugin.registry import Registry
from prunebench.suite import schema
from prunebench.suite.source import shipped
from readmes import ROOT, named, table, tables


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_plugins()


def column(rows: list[list[str]], number: int = 0) -> list[str]:
    return [name for row in rows for name in named(row[number])]


def check_papers(rows: list[list[str]], entries: dict[str, Any]) -> None:
    """A row for each plugin, with its paper among those that the row names."""
    assert {named(row[0])[0] for row in rows} == set(entries)
    for row in rows:
        reference = getattr(entries[named(row[0])[0]].value, "reference", None)
        if reference is not None and reference.arxiv:
            assert f"[{reference.arxiv}]" in row[-1], row


def test_the_methods(registry: Registry) -> None:
    rows = table("plugins/README.md", "dense")
    check_papers(rows, registry["method"])
    for row in rows:
        name = named(row[0])[0]
        method = registry["method"][name].value
        options = method.Options.model_construct()  # `apply` has no default for what to remove
        assert (row[2] != "nothing") == method.needs_calibration, row
        assert re.fullmatch(r"\d\.\d|\d+|training|", row[3]), row
        assert ("allocations" in row[4]) == (method.refuses_allocation(options) is None), row
        assert ("`--stream`" in row[4]) == (method.refuses_streaming(options) is None), row
        assert ("`dsnot`" in row[4]) == _can_be_refined(registry, name), row


def _can_be_refined(registry: Registry, name: str) -> bool:
    try:
        registry["method"]["dsnot"].value.Options(initial_method=name)
    except ValidationError:
        return False
    return True


def test_the_methods_in_short(registry: Registry) -> None:
    assert set(column(table("README.md", "magnitude"))) == set(registry["method"])


def test_recoveries_allocations_and_metrics(registry: Registry) -> None:
    check_papers(table("plugins/README.md", "lora"), registry["recovery"])
    check_papers(table("plugins/README.md", "owl"), registry["allocation"])
    check_papers(table("plugins/README.md", "kl-divergence"), registry["metric"])


def test_the_corpora(registry: Registry) -> None:
    rows = table("suites/README.md", "wikitext2")
    assert set(column(rows)) == set(registry["corpus"])
    from_hub = {named(row[0])[0] for row in rows if row[2] == "the Hub"}
    assert from_hub == {
        name for name, entry in registry["corpus"].items() if "hub_corpora" in entry.origin
    }


def test_the_suites() -> None:
    rows = table("suites/README.md", "quickstart")
    assert sorted(column(rows)) == sorted(shipped())


def test_the_protocols() -> None:
    rows = table("suites/README.md", "disp-llm")
    assert column(rows) == list(PROTOCOLS)
    assert [named(row[0])[0] for row in rows if "default" in row[0]] == [DEFAULT]
    for row in rows:
        length = PROTOCOLS[named(row[0])[0]].length
        assert "max_position_embeddings" in row[1] if length is None else str(length) in row[1]


def test_the_hooks() -> None:
    known = [name for name in vars(hookspecs) if name.startswith("prunebench_")]
    assert sorted(column(table("plugins/README.md", "prunebench_register_method"))) == sorted(known)


@pytest.mark.parametrize(
    ("first", "section"),
    [
        ("name", schema.SuiteFile),
        ("model", schema.ModelEntry),
        ("corpus", schema.CalibrationEntry),
        ("gate", schema.QualityEntry),
        ("protocol", schema.PerplexityEntry),
        ("task", schema.TaskEntry),
        ("prompt", schema.LatencyEntry),
        ("tolerance", schema.ExpectEntry),
    ],
)
def test_the_keys_of_a_suite(first: str, section: type[schema.Section]) -> None:
    """Each key of a section has its row, and a default that the row names is the schema's."""
    keys = set(section.model_fields)
    [rows] = [
        one[1:]
        for one in _key_tables()
        if first in column(one[1:]) and set(column(one[1:])) == keys
    ]
    for row in rows:
        if stated := re.search(r"default (\d+(?:\.\d+)?)$", row[1]):
            default = section.model_fields[named(row[0])[0]].default
            assert float(stated[1]) == (default[0] if isinstance(default, list) else default), row


def _key_tables() -> list[list[list[str]]]:
    return [one for one in tables("suites/README.md") if one[0][0] == "key"]


def test_every_room_of_the_harness_is_in_the_layout_and_imports_run_down_it() -> None:
    rooms = column(table("harness/README.md", "cli"))
    package = ROOT / "harness" / "prunebench"
    there = {path.name for path in package.iterdir() if (path / "__init__.py").is_file()}
    assert {room for room in rooms if not room.endswith(".py") and "/" not in room} == there
    for room in rooms:
        assert (package / room).exists(), room
    order = {room: number for number, room in enumerate(rooms)}
    layers = [[_room(name) for name in layer.split("|")] for layer in _layers()]
    for upper, lower in pairwise(layers):
        for above in upper:
            for below in lower:
                if above in order and below in order:
                    assert order[above] < order[below], (
                        f"{above} is above {below} in pyproject.toml"
                    )


def _layers() -> list[str]:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    [layers] = [
        contract["layers"]
        for contract in tool["importlinter"]["contracts"]
        if contract["name"] == "imports run one way"
    ]
    return layers


def _room(module: str) -> str:
    name = module.strip().removeprefix("prunebench.")
    folder: Path = ROOT / "harness" / "prunebench" / name
    return name if folder.is_dir() else f"{name}.py"


def test_the_folders_of_the_report_are_in_its_table() -> None:
    rows = table("reports/README.md", "prunebench_report/data")
    package = ROOT / "reports" / "prunebench_report"
    there = {path.parent.name for path in package.glob("*/__init__.py")}
    assert {Path(name).name for name in column(rows)} == there


def test_every_tox_environment_is_in_the_table_of_contributors() -> None:
    ours = set(re.findall(r"^\[testenv:(\w+)\]", (ROOT / "tox.ini").read_text(), re.MULTILINE))
    assert set(column(table(".github/CONTRIBUTING.md", "tests"))) == ours


def test_the_sections_of_a_report() -> None:
    """The table has the entries of the report's navigation, in their order."""
    output = ROOT / "reports" / "prunebench_report" / "output"
    template = (output / "templates" / "report.html.j2").read_text(encoding="utf-8")
    navigation = template[template.index("call bar()") : template.index("endcall")]
    [rows] = [one[1:] for one in tables("reports/README.md") if one[0][0] == "section"]
    assert [row[0] for row in rows] == re.findall(r">([^<{}]+)</a>", navigation)
