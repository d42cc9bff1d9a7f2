"""The table of `.ci/house.py` counts what it says it counts."""

from __future__ import annotations

import ast
import importlib
from types import ModuleType

import pytest

from readmes import ROOT


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / ".ci")
    return importlib.import_module("house")


def tree(house: ModuleType, folder, source: str):
    (folder / "src").mkdir()
    (folder / "src" / "module.py").write_text(source)
    house_root, house.ROOT = house.ROOT, folder
    try:
        return house.read_room("src")
    finally:
        house.ROOT = house_root


def test_a_function_is_counted_from_def_to_its_last_line(house, tmp_path) -> None:
    body = "    x = 1\n" * house.LONGEST_FUNCTION
    room = tree(
        house, tmp_path, f"class A:\n    def long(self):\n{body.replace('    ', '        ')}"
    )
    assert room.long_functions == ["src/module.py:2 A.long: 61 lines"]
    assert next(iter(house.missed([room]))) == "src: functions above 60 lines"


def test_self_and_stars_are_parameters_and_click_commands_are_exempt(house, tmp_path) -> None:
    nine = "self, a, b, c, d, /, e, *f, g, **h"
    source = f"class A:\n    def many({nine}): ...\n@click.command('x')\ndef x({nine}): ...\n"
    room = tree(house, tmp_path, source)
    assert room.crowded_functions == ["src/module.py:2 A.many: 9 parameters"]


def test_comments_are_real_ones(house) -> None:
    source = "x = 1  # why\n# another\ny = '# text'\nz = 2  # noqa: E501\nw = 3  # type: ignore\n"
    assert house.commented_lines(source) == {1, 2}


def test_click_is_recognised_by_its_decorators(house) -> None:
    [group] = ast.parse("@cli.group()\ndef f(): ...").body
    [plain] = ast.parse("@cache\ndef f(): ...").body
    assert house.is_click_command(group)
    assert not house.is_click_command(plain)
