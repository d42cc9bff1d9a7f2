"""Models lent part by part from their files: the tensors are those that transformers loads."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch

from prunebench.errors import PrunebenchError
from prunebench.model.anatomy import anatomy
from prunebench.model.checkpoint import save_by_pieces
from prunebench.model.folder import read_checkpoint
from prunebench.model.load import load, load_bare
from prunebench.model.streamed import StreamedModel, open_tensors
from prunebench.testing import any_type
from tiny import FAMILIES, tiny_checkpoint, tiny_model, tiny_tokenizer

YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 32,
}


def bare(folder: Path, dtype: str = "float32"):
    return load_bare(folder, dtype=dtype, device="cpu").model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_lent_parts_equal_those_of_a_loaded_model(family: str, dtype: str, tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, family)
    whole = load(tmp_path, dtype=dtype, device="cpu").model
    model = bare(tmp_path, dtype)
    assert all(parameter.is_meta for parameter in model.parameters())
    for (name, buffer), (theirs, other) in zip(
        model.named_buffers(), whole.named_buffers(), strict=True
    ):
        assert name == theirs
        assert torch.equal(buffer, other)
        assert buffer.dtype == other.dtype
    with open_tensors(read_checkpoint(tmp_path)) as source:
        streamed = StreamedModel(model, source)
        ids = torch.arange(2, 26).view(2, 12)
        parts = anatomy(model)
        for index, layer in enumerate(parts.layers):
            with streamed.layer(index, changes=False):
                for name, tensor in anatomy(whole).layers[index].state_dict().items():
                    assert torch.equal(layer.state_dict()[name], tensor)
            assert all(parameter.is_meta for parameter in layer.parameters())
        with streamed.frame():
            expected = whole.get_input_embeddings()(ids)
            assert torch.equal(model.get_input_embeddings()(ids), expected)
            assert parts.final_norm is not None
            assert torch.equal(parts.final_norm(expected), anatomy(whole).final_norm(expected))
        assert all(parameter.is_meta for parameter in model.parameters())


def test_rotary_frequencies_follow_the_config(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, "llama", rope_parameters=YARN)
    whole = load(tmp_path, dtype="float32", device="cpu").model
    assert not torch.equal(
        whole.model.rotary_emb.inv_freq, tiny_model("llama").model.rotary_emb.inv_freq
    )
    assert torch.equal(bare(tmp_path).model.rotary_emb.inv_freq, whole.model.rotary_emb.inv_freq)


def test_names_without_the_decoders_prefix_are_found(tmp_path: Path) -> None:
    """Checkpoints that were saved from the decoder alone have such names."""
    model = tiny_model("opt")
    model.model.save_pretrained(tmp_path)
    model.config.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with open_tensors(read_checkpoint(tmp_path)) as source:
        assert "decoder.layers.0.fc1.weight" in source.entries
        lent = bare(tmp_path)
        with StreamedModel(lent, source).layer(1, changes=False):
            assert torch.equal(
                lent.model.decoder.layers[1].fc1.weight, model.model.decoder.layers[1].fc1.weight
            )


def test_a_layers_memory_is_freed_when_it_is_given_back(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, "llama")
    model = bare(tmp_path)
    alive: list[weakref.ref[torch.Tensor]] = []
    with open_tensors(read_checkpoint(tmp_path)) as source:
        streamed = StreamedModel(model, source)
        for index in range(4):
            with streamed.layer(index, changes=False):
                alive += [weakref.ref(weight) for weight in model.model.layers[index].parameters()]
            assert not any(weight() is not None for weight in alive)


def test_a_written_layer_is_lent_with_its_changes(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "model", "llama")
    model = bare(tmp_path / "model")
    source = open_tensors(read_checkpoint(tmp_path / "model"))
    with source, save_by_pieces(model, None, tmp_path / "out", shard_bytes=1 << 30) as (_, target):
        streamed = StreamedModel(model, source, target)
        with streamed.layer(2, changes=True):
            model.model.layers[2].mlp.up_proj.weight.fill_(3.0)
        with streamed.layer(2, changes=False):
            assert bool((model.model.layers[2].mlp.up_proj.weight == 3.0).all())
        assert streamed.written == {2}


def test_a_layer_is_not_written_if_its_block_fails(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "model", "llama")
    model = bare(tmp_path / "model")
    source = open_tensors(read_checkpoint(tmp_path / "model"))
    pieces = save_by_pieces(model, None, tmp_path / "out", shard_bytes=1 << 30)
    with pytest.raises(ZeroDivisionError), source, pieces as (_, target):
        streamed = StreamedModel(model, source, target)
        with streamed.layer(0, changes=True):
            _ = 1 / 0
    assert streamed.written == set()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("change", ["shape", "type"])
def test_another_shape_or_type_is_refused(change: str, tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "model", "llama")
    model = bare(tmp_path / "model")
    source = open_tensors(read_checkpoint(tmp_path / "model"))
    pieces = save_by_pieces(model, None, tmp_path / "out", shard_bytes=1 << 30)
    message = r"model.layers.1.mlp.up_proj.weight has another shape or type"
    with pytest.raises(PrunebenchError, match=message), source, pieces as (_, target):
        lending = StreamedModel(model, source, target).layer(1, changes=True)
        with lending:
            linear = model.model.layers[1].mlp.up_proj
            weight = linear.weight[:8] if change == "shape" else linear.weight.double()
            linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model_type", ["qwen3_moe", "mixtral", "gpt2", "gpt_oss"])
def test_experts_that_lie_one_by_one_on_disk_are_lent_and_written(
    model_type: str, tmp_path: Path
) -> None:
    """In memory they are one parameter of a layer."""
    whole = any_type.tiny_model(model_type)
    whole.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    whole = load(tmp_path / "model", dtype="float32", device="cpu").model
    model = bare(tmp_path / "model")
    source = open_tensors(read_checkpoint(tmp_path / "model"))
    with source, save_by_pieces(model, None, tmp_path / "ours", shard_bytes=1 << 30) as (_, target):
        streamed = StreamedModel(model, source, target)
        for index, layer in enumerate(anatomy(model).layers):
            dense = anatomy(whole).layers[index].state_dict()
            with streamed.layer(index, changes=True):
                assert layer.state_dict().keys() == dense.keys()
                assert all(torch.equal(layer.state_dict()[name], dense[name]) for name in dense)
                for linear in anatomy(model).linears(layer).values():
                    linear.weight[:, ::2] = 0
            with streamed.layer(index, changes=False):
                for linear in anatomy(model).linears(layer).values():
                    assert bool((linear.weight[:, ::2] == 0).all())
        streamed.copy_rest()
    for layer in anatomy(whole).layers:
        for linear in anatomy(whole).linears(layer).values():
            with torch.no_grad():
                linear.weight[:, ::2] = 0
    whole.save_pretrained(tmp_path / "theirs")
    ours, theirs = (tmp_path / name / "model.safetensors" for name in ("ours", "theirs"))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_shards_equal_those_of_transformers(family: str, tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "model", family)
    whole = load(tmp_path / "model", dtype="float32", device="cpu").model
    whole.save_pretrained(tmp_path / "theirs", max_shard_size=100_000)
    source = open_tensors(read_checkpoint(tmp_path / "model"))
    model = bare(tmp_path / "model")
    with source, save_by_pieces(model, None, tmp_path / "ours", shard_bytes=100_000) as (_, target):
        streamed = StreamedModel(model, source, target)
        for index in range(4):
            with streamed.layer(index, changes=True):
                pass
        streamed.copy_rest()
    files = sorted(path.name for path in (tmp_path / "ours").iterdir())
    assert len([name for name in files if name.endswith(".safetensors")]) > 2
    assert files == sorted(path.name for path in (tmp_path / "theirs").iterdir())
    for name in files:
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
