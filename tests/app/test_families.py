"""What works on a model is told from its config alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from prunebench.app.families import LEVELS, all_levels, model_levels
from prunebench.cli import prunebench as command
from prunebench.errors import PrunebenchError
from prunebench.model.supported import causal_types
from prunebench.testing.any_type import tiny_config


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def folder(path: Path, model_type: str, **changes: object) -> Path:
    """A folder with nothing but a config."""
    config = tiny_config(model_type).to_dict() | changes
    (path / "config.json").write_text(json.dumps(config | {"model_type": model_type}))
    return path


def test_a_llama_can_do_all_but_what_needs_experts(tmp_path: Path) -> None:
    found = model_levels(str(folder(tmp_path, "llama")))
    assert {level for level, answer in found.levels.items() if answer.works} == set(LEVELS) - {
        "experts"
    }
    assert found.levels["weights"].text.startswith("28 matrices with 75%")
    assert found.levels["experts"].text == "the layers have no routed experts in fused parameters"
    assert found.parameters is not None and found.parameters > 100_000


def test_a_mixture_has_experts(tmp_path: Path) -> None:
    found = model_levels(str(folder(tmp_path, "qwen3_moe")))
    assert found.levels["experts"].text == "16 in 4 layers"
    assert found.levels["depth"].works


@pytest.mark.parametrize(
    ("model_type", "changes", "level", "said"),
    [
        ("bart", {"is_encoder_decoder": True}, "weights", "is an encoder-decoder"),
        ("mamba", {}, "weights", "a mamba model is a pure state-space model"),
        ("xlm", {}, "layers", "several lists of layers: transformer.attentions"),
        ("zamba2", {}, "weights", "layers of a zamba2 model share one attention"),
        ("gemma3n_text", {}, "depth", "reads the keys and values of another layer"),
        ("minicpm3", {}, "depth", r"another one after loading: \.residual_scale"),
        ("llama", {"quantization_config": {"quant_method": "fp8"}}, "weights", "quantised .fp8"),
        ("llama", {"num_attention_heads": 7}, "layers", "transformers cannot build a llama"),
    ],
)
def test_what_does_not_work_says_why(
    tmp_path: Path, model_type: str, changes: dict[str, object], level: str, said: str
) -> None:
    answer = model_levels(str(folder(tmp_path, model_type, **changes))).levels[level]
    assert not answer.works
    assert re.search(said, answer.text), answer.text


def test_a_name_that_means_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PrunebenchError, match="neither a folder, a Hub id") as caught:
        model_levels("llamma")
    assert caught.value.hint == "did you mean 'llama'?"
    with pytest.raises(PrunebenchError, match=r"no config\.json"):
        model_levels(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(PrunebenchError, match="a PEFT adapter, not a model"):
        model_levels(str(tmp_path))


def test_the_command_prints_a_model_and_the_table_of_all_types(tmp_path: Path) -> None:
    path = folder(tmp_path, "qwen3")
    text = invoke("families", path).output
    assert "yes depth    layers can be removed" in text
    assert json.loads(invoke("families", path, "--json").output)["levels"]["layers"]["works"]
    assert set(json.loads(invoke("families", "--json").output)) == set(all_levels())
    assert set(all_levels()) <= set(causal_types())
    assert "llama" in invoke("families").output
