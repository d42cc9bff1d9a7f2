"""Engines by name, and what is said about a name or an option that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from prunebench.cli import prunebench
from prunebench.engine.local import LocalEngine
from prunebench.engine.select import built_in, choose
from prunebench.errors import PrunebenchError
from prunebench.plugin.api.engine import BUILT_IN
from prunebench.plugin.registry import Registry
from rig import Rig


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("rya", {}, r"no engine 'rya' \(did you mean 'ray'\? \(known: local, ray\)\)"),
        ("local", {"slot": "2"}, r"engine 'local': slot: .*its options: slots"),
        ("local", {"slots": "two"}, "engine 'local': slots: should be a valid integer"),
        ("local", {"slots": True}, "slots: should be a number"),
        ("local", {"slots": str(10**30)}, "slots: should be at most 9223372036854775807"),
        ("ray", {"patience_s": "nan"}, "patience_s: should be"),
        ("ray", {"patience_s": "1e400"}, "patience_s: should be a finite number"),
        ("ray", {"patience_s": "inf"}, "patience_s: should be a finite number"),
        ("ray", {"patience_s": "-1"}, "patience_s: should be greater than or equal to 0"),
    ],
)
def test_a_wrong_engine_is_one_clear_line(name: str, options: dict[str, str], words: str) -> None:
    with pytest.raises(PrunebenchError, match=words):
        choose(name, options, Registry())


def test_the_built_in_engines_need_no_plugin() -> None:
    assert tuple(entry.name for entry in built_in()) == BUILT_IN
    engine = choose("local", {"slots": "2"}, Registry())
    assert isinstance(engine, LocalEngine)
    assert engine.options.slots == 2


def test_the_command_line_says_what_is_wrong_with_an_engine(tmp_path: Path) -> None:
    for arguments, words in (
        (["--ray-address", "auto"], "--ray-address goes with --engine ray"),
        (["--engine-option", "slots"], "write KEY=VALUE"),
    ):
        done = CliRunner().invoke(prunebench, ["run", "smoke", *arguments])
        assert done.exit_code == 2, done.output
        assert words in done.output
    rig = Rig(tmp_path)
    done = rig.invoke("run", rig.suite("magnitude"), "--engine", "rya")
    assert done.returncode == 2
    assert "there is no engine 'rya'" in done.stderr
    assert not (tmp_path / "runs").exists()
