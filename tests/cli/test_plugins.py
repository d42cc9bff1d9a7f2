"""`prunebench plugins`, `check` and `show`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from prunebench.cli import prunebench as command
from prunebench.plugin.scaffold import write_package

MODULE = "prunebench_my_idea.py"


def invoke(*arguments: str | Path):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_a_broken_promise_is_exit_code_1_and_names_the_family(tmp_path: Path) -> None:
    folder = write_package("my-idea", "method", tmp_path)
    path = folder / MODULE
    path.write_text(
        path.read_text().replace("weight.abs().float()", "__import__('torch').rand(weight.shape)")
    )
    done = invoke("plugins", "check", "my-idea", "--family", "opt", "--plugin", path)
    assert done.exit_code == 1
    assert (
        "BROKEN  gives the same result for the same seed (opt: two runs with one seed differ"
        in done.output
    )


def test_check_takes_any_type_of_model() -> None:
    """A mixture, in which the weights of all experts are in one parameter."""
    done = invoke("plugins", "check", "magnitude", "sparsity=0.5", "--family", "gpt_oss")
    assert done.exit_code == 0, done.output
    assert "on gpt_oss\n" in done.output
    assert "14 promises kept; 1 not tried" in done.output
    refused = invoke("plugins", "check", "magnitude", "--family", "mamba2").exception
    assert "--family mamba2: a mamba2 model is a pure state-space model" in str(refused)
    unknown = invoke("plugins", "check", "magnitude", "--family", "nope").exception
    assert "no family is called 'nope' (`prunebench families` lists them all)" in str(unknown)


def test_check_takes_options_and_refuses_wrong_ones() -> None:
    done = invoke(
        "plugins", "check", "magnitude", "sparsity=0.3", "scope=global", "--family", "opt"
    )
    assert done.exit_code == 0, done.output
    assert "did you mean 'llama'" in str(
        invoke("plugins", "check", "wanda", "--family", "lama").exception
    )
    assert "sparsity" in str(invoke("plugins", "check", "wanda", "sparsity=2").exception)
    assert "have a contract" in str(invoke("plugins", "check", "c4").exception)


def test_show_prints_paper_structures_and_options() -> None:
    text = invoke("plugins", "show", "magnitude").output
    for words in (
        "arXiv:1506.02626",
        "n:m, unstructured",
        "prunebench families",
        "min_density: float (>= 0, <= 1) = 0.01",
        "clean | reference",
    ):
        assert words in text
    owl = json.loads(invoke("plugins", "show", "owl", "--json").output)[0]
    assert (owl["kind"], owl["needs_calibration"]) == ("allocation", True)
    assert [option["name"] for option in owl["options"]] == ["threshold", "spread", "mode"]
    assert "did you mean 'wanda'" in str(invoke("plugins", "show", "wnda").exception)
    metric = invoke("plugins", "show", "kl-divergence").output
    for words in (
        "arXiv:2407.09141",
        "kl-divergence, nats: lower is better",
        "top1-agreement, share: higher is better",
    ):
        assert words in metric


def test_show_imports_no_torch() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from prunebench.cli import prunebench\n"
        "result = CliRunner().invoke(prunebench, ['plugins', 'show', 'wanda'])\n"
        "assert result.exit_code == 0, result.output\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_list_imports_no_torch() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from prunebench.cli import prunebench\n"
        "result = CliRunner().invoke(prunebench, ['plugins', '--json'])\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
        "print(result.output)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    rows = {(row["kind"], row["name"]): row for row in json.loads(out)}
    wanda = rows["method", "wanda"]
    assert wanda["distribution"] == "prunebench"
    assert wanda["status"] == "ok"
    assert Path(wanda["origin"]).name == "wanda.py"
