"""Models that a plugin generates: pinned by their files, generated once, and again if damaged."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import pytest

from prunebench.errors import PrunebenchError
from prunebench.model.fetch import fetch_checkpoint
from prunebench.model.folder import fingerprint
from prunebench.model.generated import GeneratedAsset
from prunebench.model.load import load
from prunebench.model.source import ModelAsset, resolve
from tiny import tiny_checkpoint

ASSET = {"parameters": 1, "summary": "made", "reference": "none", "licence": "none"}


@pytest.fixture
def maker(tmp_path, monkeypatch):
    """A module `makers`: `write` saves a tiny checkpoint and counts its calls; with its asset."""
    module = ModuleType("makers")
    module.calls = 0

    def write(folder):
        module.calls += 1
        tiny_checkpoint(folder)

    module.write = write
    monkeypatch.setitem(sys.modules, "makers", module)
    write(tmp_path / "once")
    module.calls = 0
    module.asset = GeneratedAsset("makers:write", fingerprint(tmp_path / "once"))
    return module


def test_a_model_is_generated_once_and_loads(maker, cache, connections):
    ref = resolve("mine", base=cache, assets={"mine": ModelAsset("mine", maker.asset, **ASSET)})
    assert (ref.kind, ref.location, ref.sha256) == ("made", "makers:write", maker.asset.sha256)
    folder = fetch_checkpoint(ref)
    assert fetch_checkpoint(ref) == folder
    assert maker.calls == 1
    assert load(folder, dtype="float32", device="cpu").model.config.num_hidden_layers == 4
    assert connections == []


def test_a_damaged_model_is_generated_again(maker, cache):
    folder = maker.asset.generate()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    (maker.asset.generate() / "config.json").unlink()
    assert fingerprint(maker.asset.generate()) == maker.asset.sha256
    assert maker.calls == 3


def test_another_model_than_the_pinned_one_is_refused_and_not_kept(maker, cache):
    wrong = GeneratedAsset("makers:write", "0" * 64)
    with pytest.raises(PrunebenchError, match="another model than the pinned one"):
        wrong.generate()
    assert [path.name for path in (cache / "models").iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("location", ["no_such_module:write", "makers:nothing", "makers:asset"])
def test_a_function_that_is_missing_or_fails_is_named(location, maker, cache):
    with pytest.raises(
        PrunebenchError, match=f"the model of {location} cannot be generated"
    ) as caught:
        GeneratedAsset(location, "0" * 64).generate()
    assert "plugin" in caught.value.hint


@pytest.mark.parametrize(
    ("location", "sha256"), [("makers", "0" * 64), ("makers:write", "0" * 63), ("a b:c", "0" * 64)]
)
def test_an_invalid_asset_is_refused(location, sha256):
    with pytest.raises(PrunebenchError):
        GeneratedAsset(location, sha256)


def test_the_built_in_model_matches_its_pin(cache):
    from prunebench_plugins import tiny_llama

    asset = tiny_llama.prunebench_register_model_source()
    folder = asset.asset.generate()  # checks every byte
    loaded = load(folder, dtype="float32", device="cpu")
    assert sum(parameter.numel() for parameter in loaded.model.parameters()) == asset.parameters
    config = loaded.model.config
    assert config.num_attention_heads == 2 * config.num_key_value_heads
    text = "Straße, 12 \N{SNOWMAN}\n\n  tabs\tand <b>signs</b>"
    ids = loaded.tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode())
    assert loaded.tokenizer.decode(ids) == text
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == len(loaded.tokenizer)
