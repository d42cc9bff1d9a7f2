from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from prunebench.errors import PrunebenchError
from prunebench.model.load import TransferTimes, load
from tiny import FAMILIES, tiny_checkpoint, tiny_model, tiny_tokenizer

IDS = torch.arange(20)[None] * 7 % 300


@pytest.fixture
def folder(tmp_path) -> Path:
    return tiny_checkpoint(tmp_path / "tiny", "llama")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_model_is_the_saved_one_in_eval_mode(tmp_path, family, connections, capfd):
    folder = tiny_checkpoint(tmp_path / family, family)
    capfd.readouterr()
    loaded = load(folder, dtype="float32", device="cpu")
    assert capfd.readouterr() == ("", "")
    assert not connections
    assert torch.equal(loaded.model(IDS).logits, tiny_model(family)(IDS).logits)
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.weight_bytes == (folder / "model.safetensors").stat().st_size
    assert loaded.seconds > 0
    assert loaded.tokenizer.decode(loaded.tokenizer("an old tree")["input_ids"]) == "an old tree"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_all_weights_have_the_requested_dtype(folder, dtype):
    model = load(folder, dtype=dtype, device="cpu").model
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}


def test_weights_are_in_memory_and_tied_ones_stay_tied(folder):
    model = load(folder, dtype="float32", device="cpu").model
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(folder) not in maps.read_text()
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_loading_to_a_device_has_two_transfers_and_moves_each_shared_tensor_once(folder):
    here = load(folder, dtype="bfloat16", device="cpu")
    assert here.transfers == TransferTimes(here.transfers.host_s)
    assert 0 < here.transfers.host_s <= here.seconds
    there = load(
        folder, dtype="bfloat16", device="meta"
    )  # a device without an accelerator behind it
    assert {parameter.device.type for parameter in there.model.parameters()} == {"meta"}
    tensors = {id(tensor): tensor for tensor in (*here.model.parameters(), *here.model.buffers())}
    assert there.transfers.device_bytes == sum(tensor.nbytes for tensor in tensors.values())
    assert there.transfers.host_s + there.transfers.device_s <= there.seconds


def test_weights_that_do_not_fit_in_host_memory_go_straight_to_the_device(folder, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    assert load(folder, dtype="float32", device="meta").transfers is None
    assert load(folder, dtype="float32", device="cpu").transfers is not None


def test_warnings_and_progress_bars_are_back_after_loading(folder):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load(folder, dtype="float32", device="cpu")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def _edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _edit_weights(folder: Path, edit) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    edit(weights)
    save_file(weights, path, metadata={"format": "pt"})


def _stretch(weights) -> None:
    weights["model.norm.weight"] = torch.ones(50)


def _corrupt(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"F32"', b'"F99"', 1))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: _edit_config(folder, num_hidden_layers=5), "num_hidden_layers is 5"),
        (lambda folder: _edit_config(folder, model_type="no-such-model"), "no-such-model"),
        (lambda folder: _edit_config(folder, model_type="vit"), "vit"),
        (
            lambda folder: _edit_weights(folder, lambda weights: weights.pop("model.norm.weight")),
            "model.norm.weight",
        ),
        (
            lambda folder: _edit_weights(folder, _stretch),
            "model.norm.weight is [50] instead of [48]",
        ),
        (_corrupt, "model.safetensors"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 100),
            "not a safetensors file",
        ),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "cannot read the tokenizer"),
    ],
)
def test_the_error_for_an_unloadable_folder_is_one_line(folder, damage, message):
    damage(folder)
    with pytest.raises(PrunebenchError) as caught:
        load(folder, dtype="float32", device="cpu")
    assert message in caught.value.message
    assert str(folder) in caught.value.message
    assert "\n" not in str(caught.value)


def test_code_of_a_checkpoint_is_not_run_unless_trusted(folder, tmp_path):
    (folder / "own.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class Own(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}
    _edit_config(folder, model_type="own", auto_map=names)
    with pytest.raises(PrunebenchError):
        load(folder, dtype="float32", device="cpu")
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_are_never_opened(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(PrunebenchError, match="never loaded"):
        load(folder, dtype="float32", device="cpu")


def test_a_real_trained_model(request):
    folder = request.config.rootpath.parent / "shared" / "models" / "stories260K-hf"
    if not folder.is_dir():
        pytest.skip(f"the small real model is not there: {folder}")
    loaded = load(folder, dtype="float32", device="cpu")
    ids = loaded.tokenizer("Once upon a time", return_tensors="pt")["input_ids"]
    written = loaded.model.generate(ids, max_new_tokens=20, do_sample=False)
    text = loaded.tokenizer.decode(written[0])
    assert "there was a little girl" in text


def test_the_tiny_tokenizer_decodes_what_it_encoded():
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode(tokenizer("hé 😀, an\nold tree")["input_ids"]) == "hé 😀, an\nold tree"
    assert len(tokenizer) == 320
