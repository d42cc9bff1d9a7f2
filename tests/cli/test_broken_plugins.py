"""What `plugins check` says of plugins with one mistake each: where it is, and only once."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from prunebench.cli import prunebench as command

HEAD = '''"""A plugin with one mistake."""

import torch
from prunebench import Field, LinearMethod, Method, Options, hookimpl


class Mine({base}):
    """Prune."""

    name = "mine"

{body}


@hookimpl
def prunebench_register_method():
    return Mine
'''

SCORES = {
    "a score of each row": (
        "        return weight.abs().sum(dim=1)",
        (
            "score returned [48], expected [48, 48]: layer 0, self_attn.q_proj; mine.py:13"
            " (return one value for every weight [out, in])"
        ),
    ),
    "half of the scores are NaN": (
        "        score = weight.abs()\n        score[:, ::2] = float('nan')\n        return score",
        (
            "score returned 1,152 of 2,304 values that are not finite: layer 0, self_attn.q_proj;"
            " mine.py:15"
        ),
    ),
    "a mask for a score": (
        "        return weight.abs() > weight.abs().median()",
        "score returned bool, expected float32: layer 0, self_attn.q_proj; mine.py:13",
    ),
    "no return": (
        "        weight.abs()",
        "score returned None, expected a tensor [48, 48]: layer 0, self_attn.q_proj; mine.py:",
    ),
    "a statistic that was not asked for": (
        "        return weight.abs() * stats.input_norm",
        (
            "the method reads `input_norm` without asking for it: layer 0, self_attn.q_proj;"
            ' mine.py:13 (set `statistics = frozenset({"input_norm"})` in the method)'
        ),
    ),
    "an error of its own": (
        "        return weight.abs() * torch.ones(7)",
        (
            "RuntimeError: The size of tensor a (48) must match the size of tensor b (7) at"
            " non-singleton dimension 1: layer 0, self_attn.q_proj; mine.py:13"
        ),
    ),
}


def check(folder: Path, body: str, *words: str, base: str = "LinearMethod") -> Result:
    file = folder / "mine.py"
    file.write_text(HEAD.format(base=base, body=body))
    return CliRunner().invoke(command, ["plugins", "check", "mine", "--plugin", str(file), *words])


def lines(done: Result, sign: str) -> list[str]:
    return [line for line in done.output.splitlines() if line.startswith(sign)]


@pytest.mark.parametrize("mistake", SCORES)
def test_a_wrong_score_is_said_once_with_its_line_its_layer_and_its_linear(
    tmp_path: Path, mistake: str
) -> None:
    body, message = SCORES[mistake]
    done = check(tmp_path, f"    def score(self, weight, stats):\n{body}")
    assert done.exit_code == 1
    [line] = lines(done, "BROKEN")
    assert f"(llama: {message}" in line
    assert line.count("llama") == 1
    assert "also on qwen2, opt" in line
    assert "0 promises kept; 1 promise is broken; 14 not tried" in done.output


def test_a_mask_that_is_no_mask_is_named(tmp_path: Path) -> None:
    body = (
        "    def mask(self, weight, stats):\n        return weight.abs()\n"
        "    def score(self, weight, stats):\n        return weight.abs()"
    )
    [line] = lines(check(tmp_path, body, "--family", "llama"), "BROKEN")
    assert "mask returned float32, expected bool: layer 0, self_attn.q_proj; mine.py:13" in line


def test_pruning_nothing_is_a_broken_promise(tmp_path: Path) -> None:
    body = '    structure = frozenset({"layers"})\n\n    def prune(self, model, context):\n        pass'
    done = check(tmp_path, body, "--family", "llama", base="Method")
    assert done.exit_code == 1
    assert lines(done, "BROKEN") == [
        "BROKEN  removes as much as is asked for (llama: it removed nothing)"
    ]


@pytest.mark.parametrize("option", ["ratio", "count", "target_parameters"])
def test_a_share_that_is_not_reached_is_a_broken_promise(tmp_path: Path, option: str) -> None:
    """It removes one layer of four, whatever is asked for."""
    kind = "int = Field(3" if option == "count" else "float = Field(0.75"
    body = (
        '    structure = frozenset({"layers"})\n\n    class Options(Options):\n'
        f'        {option}: {kind}, description="how much")\n\n'
        "    def prune(self, model, context):\n"
        f"        if self.options.{option}:\n            context.remove_layers(model, [1])"
    )
    done = check(tmp_path, body, "--family", "llama", base="Method")
    assert done.exit_code == 1
    broken = "\n".join(lines(done, "BROKEN"))
    assert f"llama: {option} {'3' if option == 'count' else '75.0%'} was asked for" in broken


def test_a_leaked_dtype_is_found_although_every_pruning_leaks_it(tmp_path: Path) -> None:
    body = (
        "    def score(self, weight, stats):\n"
        "        torch.set_default_dtype(torch.float64)\n        return weight.abs()"
    )
    done = check(tmp_path, body, "--family", "llama")
    [line] = lines(done, "BROKEN")
    assert "the default dtype at torch.float64, it was torch.float32" in line
    assert torch_dtype() == "torch.float32"


def torch_dtype() -> str:
    import torch

    return str(torch.get_default_dtype())


def test_weights_of_another_type_are_found_with_the_first_of_them(tmp_path: Path) -> None:
    body = (
        "    def prune(self, model, context):\n        super().prune(model, context)\n"
        "        model.model.layers[1].mlp.double()\n\n"
        "    def score(self, weight, stats):\n        return weight.abs()"
    )
    [line] = lines(check(tmp_path, body, "--family", "llama"), "BROKEN")
    assert "model.layers.1.mlp.gate_proj.weight became torch.float64, it was torch.float32" in line


def test_inverted_masks_and_scores_are_noticed(tmp_path: Path) -> None:
    score = "    def score(self, weight, stats):\n        return {}weight.abs()\n"
    mask = "    def mask(self, weight, stats):\n        return ~super().mask(weight, stats)\n"
    done = check(tmp_path, mask + score.format(""), "--family", "llama")
    assert done.exit_code == 1
    assert "25.0% was asked for, 75.0% measured; is the mask inverted?" in done.output
    done = check(tmp_path, score.format("-"), "--family", "llama")
    assert done.exit_code == 0, done.output
    [hint] = lines(done, "hint")
    assert "is worse than random pruning: is something inverted? (llama: it changes the" in hint
    assert not lines(check(tmp_path, score.format(""), "--family", "llama"), "hint")


def test_a_method_that_every_family_refuses_is_a_failure(tmp_path: Path) -> None:
    body = (
        "    def prune(self, model, context):\n        from prunebench import PrunebenchError\n"
        "        raise PrunebenchError('only GPT-2', hint='take another model')\n"
    )
    done = check(tmp_path, body, base="Method")
    assert done.exit_code == 1
    [line] = lines(done, "BROKEN")
    assert "llama: refused: only GPT-2 (take another model); also on qwen2, opt, gpt_neox" in line


def test_the_end_says_what_to_do_next(tmp_path: Path) -> None:
    body = "    def score(self, weight, stats):\n        return weight.abs()"
    done = check(tmp_path, body, "--family", "opt")
    assert "14 promises kept; 1 not tried" in done.output or "15 promises kept" in done.output
    assert f"next: prunebench run SUITE --plugin {tmp_path / 'mine.py'}" in done.output
