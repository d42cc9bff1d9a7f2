from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prunebench.errors import PrunebenchError
from prunebench.model.checkpoint import memory_bytes, parameter_count, safetensors_bytes, save
from prunebench.model.surgery import remove_layers
from tiny import FAMILIES, tiny_checkpoint, tiny_model, tiny_tokenizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_computed_size_is_that_of_the_file(family, tied, dtype, tmp_path):
    model = tiny_model(family, tie_word_embeddings=tied).to(dtype)
    before = safetensors_bytes(model)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size == before


def test_the_size_is_right_for_a_model_of_several_dtypes(tmp_path):
    model = tiny_model("llama")
    model.model.layers[1].to(torch.bfloat16)
    model.model.layers[2].to(torch.float64)
    expected = safetensors_bytes(model)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size == expected


def test_tied_weights_count_once():
    tied, untied = tiny_model("opt"), tiny_model("opt", tie_word_embeddings=False)
    embeddings = 320 * 48
    assert parameter_count(untied) - parameter_count(tied) == embeddings
    assert memory_bytes(untied) - memory_bytes(tied) == 4 * embeddings
    assert parameter_count(tied) == sum(parameter.numel() for parameter in tied.parameters())


def test_weights_that_share_memory_under_two_parameters_count_once():
    model = tiny_model("llama")
    before = parameter_count(model), memory_bytes(model)
    model.lm_head.weight = torch.nn.Parameter(
        model.model.embed_tokens.weight.data, requires_grad=False
    )
    assert (parameter_count(model), memory_bytes(model)) == before


def test_buffers_count_as_memory_but_not_as_parameters():
    model = tiny_model("llama")
    memory, count = memory_bytes(model), parameter_count(model)
    model.register_buffer("table", torch.zeros(100))
    assert memory_bytes(model) - memory == 400
    assert parameter_count(model) == count


def test_a_model_on_the_meta_device_is_counted_too():
    with torch.device("meta"):
        empty = type(tiny_model("llama"))(tiny_model("llama").config)
    assert parameter_count(empty) == parameter_count(tiny_model("llama"))
    assert safetensors_bytes(empty) == safetensors_bytes(tiny_model("llama"))


def test_removing_layers_saves_bytes(tmp_path):
    model = tiny_model("gpt_neox")
    layer = sum(parameter.numel() for parameter in model.gpt_neox.layers[0].parameters())
    before = parameter_count(model)
    remove_layers(model, [1, 2])
    assert before - parameter_count(model) == 2 * layer
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size == safetensors_bytes(model)


def test_plain_transformers_loads_a_saved_model(tmp_path, capfd):
    model = tiny_model("qwen3")
    save(model, tiny_tokenizer(), tmp_path / "kept")
    assert capfd.readouterr() == ("", "")
    ids = torch.arange(9)[None]
    assert torch.equal(
        AutoModelForCausalLM.from_pretrained(tmp_path / "kept")(ids).logits, model(ids).logits
    )
    assert AutoTokenizer.from_pretrained(tmp_path / "kept")("an old tree")["input_ids"]
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in (tmp_path / "kept").iterdir())


def test_an_earlier_checkpoint_is_replaced_completely(tmp_path):
    folder = tiny_checkpoint(tmp_path / "kept", "llama")
    (folder / "chat_template.jinja").write_text("of the old one")
    save(tiny_model("opt"), None, folder)
    assert AutoModelForCausalLM.from_pretrained(folder).config.model_type == "opt"
    assert not (folder / "chat_template.jinja").exists()


def test_a_folder_that_is_not_a_checkpoint_is_never_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").touch()
    with pytest.raises(PrunebenchError, match="is not a checkpoint"):
        save(tiny_model("opt"), None, tmp_path / "photos")
    assert (tmp_path / "photos" / "one.jpg").exists()


def test_a_failed_save_leaves_nothing_behind(tmp_path, monkeypatch):
    model = tiny_model("llama")
    folder = tiny_checkpoint(tmp_path / "kept", "opt")

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model, "save_pretrained", full)
    with pytest.raises(PrunebenchError, match="No space left"):
        save(model, None, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert AutoModelForCausalLM.from_pretrained(folder).config.model_type == "opt"
