from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from prunebench.errors import PrunebenchError
from prunebench.experiment.model import ModelRef
from prunebench.model.cache import file_sha256
from prunebench.model.fetch import fetch_checkpoint
from prunebench.model.load import load
from prunebench.model.source import resolve
from prunebench.model.wheel import WheelAsset
from tiny import tiny_checkpoint, tiny_model, tiny_tokenizer

IDS = torch.arange(20)[None] * 7 % 300


@pytest.fixture(scope="module")
def converted(tiny_gguf, tmp_path_factory) -> Path:
    """A cache that holds the converted tiny GGUF file."""
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("cache")
        patch.setenv("PRUNEBENCH_CACHE", str(cache))
        fetch_checkpoint(resolve(str(tiny_gguf), base=Path(), assets={}))
    return cache


@pytest.fixture
def filled(converted, cache) -> Path:
    shutil.copytree(converted, cache)
    return cache


def test_a_gguf_file_becomes_a_plain_checkpoint_with_the_same_logits(
    tiny_gguf, filled, connections
):
    folder = fetch_checkpoint(resolve(str(tiny_gguf), base=Path(), assets={}))
    assert folder.parent == filled / "models"
    loaded = load(folder, dtype="float32", device="cpu")
    assert torch.equal(loaded.model(IDS).logits, tiny_model("llama")(IDS).logits)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(plain(IDS).logits, tiny_model("llama")(IDS).logits)
    assert not hasattr(plain.config, "quantization_config")
    text = "the quick brown fox, then a tree"
    assert loaded.tokenizer(text)["input_ids"] == tiny_tokenizer()(text)["input_ids"]
    assert not connections


def test_conversion_stays_quiet(tiny_gguf, cache, capfd, caplog):
    fetch_checkpoint(resolve(str(tiny_gguf), base=Path(), assets={}))
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert {path.suffix for path in (cache / "models").iterdir()} >= {".lock"}
    assert not list((cache / "models").glob(".tmp-*"))


def test_a_file_is_converted_once(tiny_gguf, filled, monkeypatch):
    ref = resolve(str(tiny_gguf), base=Path(), assets={})
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)
    assert fetch_checkpoint(ref).is_dir()


def test_a_damaged_conversion_is_repeated(tiny_gguf, filled):
    ref = resolve(str(tiny_gguf), base=Path(), assets={})
    weights = fetch_checkpoint(ref) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    assert fetch_checkpoint(ref) == weights.parent
    assert weights.read_bytes() == whole


def test_a_wheel_asset_uses_the_same_conversion(tiny_gguf, filled):
    digest = file_sha256(tiny_gguf)
    asset = WheelAsset("some-wheel", "1.0", f"some/{tiny_gguf.name}", digest)
    (filled / "assets" / digest).mkdir(parents=True)
    shutil.copy(tiny_gguf, filled / "assets" / digest)
    wheel = ModelRef(name="x", kind="wheel", location=asset.location, sha256=digest)
    assert fetch_checkpoint(wheel) == fetch_checkpoint(
        resolve(str(tiny_gguf), base=Path(), assets={})
    )


def test_a_gguf_that_changed_after_planning_is_refused(tiny_gguf, tmp_path, filled):
    copy = tmp_path / "copy.gguf"
    shutil.copy(tiny_gguf, copy)
    ref = resolve(str(copy), base=Path(), assets={})
    copy.write_bytes(copy.read_bytes() + b"\0")
    with pytest.raises(PrunebenchError, match="has changed since the run was planned"):
        fetch_checkpoint(ref)


def test_a_gguf_that_transformers_cannot_convert_is_refused(tmp_path, cache):
    import gguf

    path = tmp_path / "odd.gguf"
    writer = gguf.GGUFWriter(path, "gemma")
    writer.add_tokenizer_model("gpt2")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(
        PrunebenchError, match=r"odd\.gguf: transformers cannot read GGUF files"
    ) as caught:
        fetch_checkpoint(resolve(str(path), base=Path(), assets={}))
    assert "\n" not in caught.value.message
    assert not list(cache.glob("models/*/"))


def test_a_folder_is_used_directly_unless_it_changed(tmp_path, cache):
    folder = tiny_checkpoint(tmp_path / "tiny")
    ref = resolve(str(folder), base=Path(), assets={})
    assert fetch_checkpoint(ref) == folder
    (folder / "config.json").write_text(
        (folder / "config.json").read_text().replace('"silu"', '"gelu"')
    )
    with pytest.raises(PrunebenchError, match="has changed since the run was planned"):
        fetch_checkpoint(ref)
    shutil.rmtree(folder)
    with pytest.raises(PrunebenchError, match="does not exist"):
        fetch_checkpoint(ref)


def test_a_gguf_file_whose_name_is_not_utf8_is_converted(tiny_gguf, tmp_path, cache):
    path = tmp_path / "caf\udce9.gguf"
    shutil.copy(tiny_gguf, path)
    ref = resolve(str(path), base=Path(), assets={})
    assert ref.name == r"caf\xe9"
    assert (fetch_checkpoint(ref) / "model.safetensors").is_file()
