"""What a shell completes, through click's own protocol."""

from __future__ import annotations

import pytest
from click.shell_completion import ShellComplete

from prunebench.cli import COMMANDS, prunebench


def completed(*words):
    """The words that begin as the last of ``words`` does."""
    *before, begun = words
    shell = ShellComplete(prunebench, {}, "prunebench", "_PRUNEBENCH_COMPLETE")
    return {item.value: item.type for item in shell.get_completions(list(before), begun)}


def test_commands_suites_and_files():
    assert set(completed("")) == set(COMMANDS)
    for command in ("run", "plan"):
        found = completed(command, "s")
        plain = {name for name, kind in found.items() if kind == "plain"}
        assert plain == {"seeds", "smoke", "standard"}
        assert "file" in found.values()
    assert "papers/wanda" in completed("run", "papers/")


@pytest.mark.parametrize(
    ("words", "some"),
    [
        (["prune", "smol"], "smollm2-135m-instruct"),
        (["profile", "tiny"], "tiny-llama"),
        (["prune", "tiny-llama", "w"], "wanda"),
        (["prune", "tiny-llama", "wanda", ""], "sparsity="),
        (["prune", "tiny-llama", "wanda", "rec"], "recovery="),
        (["prune", "tiny-llama", "wanda", "--calibration", "win"], "windows="),
        (["prune", "tiny-llama", "wanda", "--calibration", "ro"], "rows="),
        (["prune", "tiny-llama", "wanda", "--calibration", "corpus=boo"], "corpus=boolq-passages"),
        (["plugins", "sh"], "show"),
        (["plugins", "show", "owl"], "owl"),
        (["plugins", "show", "loc"], "local"),
        (["plugins", "check", "lora", "ran"], "rank="),
        (["plugins", "check", "wanda", "--family", "lla"], "llama"),
        (["run", "smoke", "--engine", "r"], "ray"),
        (["run", "smoke", "--str"], "--strict"),
        (["compare", "--fail"], "--fail-on"),
    ],
    ids=" ".join,
)
def test_what_may_follow_is_completed(words, some):
    if isinstance(words, list):
        assert some in completed(*words)


def test_an_option_that_was_given_is_not_offered_again():
    assert "sparsity=" not in completed("prune", "tiny-llama", "wanda", "sparsity=0.5", "")
    assert completed("prune", "tiny-llama", "no-such-method", "") == {}
