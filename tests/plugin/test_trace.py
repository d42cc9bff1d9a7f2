"""PRUNEBENCH_TRACE_HOOKS=1 writes a line for each call of a hook."""

from __future__ import annotations

import re

import pytest

from prunebench.plugin.trace import VARIABLE, traced


def raising() -> None:
    raise OSError("disk")


@pytest.mark.parametrize("setting", ["", "0"])
def test_nothing_is_traced_by_default(
    setting: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, setting)
    assert traced("hook_name", "dist:name", int, "7") == 7
    assert capsys.readouterr().err == ""


def test_a_line_has_hook_plugin_result_and_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    assert traced("hook_name", "dist:name", int, "7") == 7
    traced("hook_name", "dist:name", lambda: [re.compile, None])
    traced("hook_name", "dist:name", list)
    with pytest.raises(OSError, match="disk"):
        traced("hook_name", "dist:name", raising)
    lines = [re.sub(r" \(\d+\.\d ms\)$", "", line) for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "hook hook_name of dist:name: 7",
        f"hook hook_name of dist:name: {re.compile}, None",
        "hook hook_name of dist:name: nothing",
        "hook hook_name of dist:name: raised OSError: disk",
    ]
