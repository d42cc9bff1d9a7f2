"""What is in the GGUF files that we write; `tox run -e runtimes` lets llama.cpp compute them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from prunebench import PrunebenchError
from prunebench.model.anatomy import Block
from prunebench.model.checkpoint import save
from prunebench.model.gguf_header import read_gguf_header
from prunebench.model.gguf_write import PRECISIONS, gguf_refusal, write_gguf
from prunebench.model.gguf_write_tokenizer import read_vocabulary
from prunebench.model.indexed import index_residual
from prunebench.model.surgery import remove_blocks
from prunebench.model.width import keep_groups
from tiny import tiny_checkpoint, tiny_model, tiny_tokenizer

TOKENS = torch.tensor([[5, 9, 100, 41, 300, 22, 17, 250]])
FULL = {"use_sliding_window": False}  # llama.cpp has no windows for Qwen2


def reader(path: Path) -> Any:
    return gguf.GGUFReader(path)


def tensors(path: Path) -> dict[str, np.ndarray]:
    return {one.name: gguf.dequantize(one.data, one.tensor_type) for one in reader(path).tensors}


def key(path: Path, name: str) -> Any:
    return reader(path).fields[name].contents()


@pytest.fixture(scope="module")
def uneven(tmp_path_factory) -> Path:
    """Layer 0 has no attention, 1 no MLP, 2 fewer heads, 3 fewer channels."""
    model = tiny_model("llama")
    remove_blocks(model, [Block(0, "attention"), Block(1, "mlp")])
    keep_groups(model, {Block(2, "attention"): [1], Block(3, "mlp"): range(0, 62, 2)})
    folder = tmp_path_factory.mktemp("uneven") / "model"
    save(model, tiny_tokenizer(), folder, made_by={"method": "by hand"})
    return folder


@pytest.mark.parametrize(("family", "options"), [("llama", {}), ("qwen2", FULL)])
def test_transformers_reads_the_file_as_the_model_it_was_made_from(tmp_path, family, options):
    from transformers import AutoModelForCausalLM

    folder = tiny_checkpoint(tmp_path / "model", family, **options)
    write_gguf(folder, tmp_path / "model.gguf")
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf").eval()
    with torch.no_grad():
        ours, theirs = tiny_model(family, **options)(TOKENS).logits, read(TOKENS).logits
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)


def test_layers_that_differ_are_a_deci_model(tmp_path, uneven):
    path = write_gguf(uneven, tmp_path / "uneven.gguf")
    assert key(path, "general.architecture") == "deci"
    # What is gone is there with zeros: llama.cpp would drop the attention of layer 1, too.
    assert key(path, "deci.feed_forward_length") == [80, 32, 80, 31]
    assert key(path, "deci.attention.head_count") == [1, 4, 2, 4]
    assert key(path, "deci.attention.head_count_kv") == [1, 2, 1, 2]
    found = tensors(path)
    zero = [name for name, values in found.items() if not values.any()]
    # Their norms are gone with them.
    assert sorted(zero) == sorted(
        [f"blk.0.attn_{one}.weight" for one in ("norm", "q", "k", "v", "output")]
        + [f"blk.1.ffn_{one}.weight" for one in ("norm", "gate", "up", "down")]
    )
    assert found["blk.1.ffn_down.weight"].shape == (48, 32)
    assert found["blk.0.attn_q.weight"].shape == (12, 48)


def test_rows_that_rope_turns_are_reordered_head_by_head(tmp_path, uneven):
    found = tensors(write_gguf(uneven, tmp_path / "uneven.gguf"))
    dense = tiny_model("llama").model.layers[2].self_attn
    keys = dense.k_proj.weight[12:].numpy()  # the second KV group, which was kept
    turned = np.stack([keys[:6], keys[6:]], axis=1).reshape(12, 48)  # halves become neighbours
    np.testing.assert_array_equal(found["blk.2.attn_k.weight"], turned)
    np.testing.assert_array_equal(found["blk.2.attn_v.weight"], dense.v_proj.weight[12:].numpy())


def test_a_qwen2_whose_heads_are_not_as_wide_as_the_model_is_a_deci_model(tmp_path):
    """llama.cpp's `qwen2` wants a bias of Q with as many numbers as the model is wide."""
    wide = tiny_checkpoint(tmp_path / "wide", "qwen2", **FULL, head_dim=16)
    usual = tiny_checkpoint(tmp_path / "usual", "qwen2", **FULL)
    for folder, architecture in ((wide, "deci"), (usual, "qwen2")):
        path = write_gguf(folder, tmp_path / "model.gguf")
        assert key(path, "general.architecture") == architecture


def test_a_layer_without_anything_is_left_out(tmp_path):
    model = tiny_model("llama")
    remove_blocks(model, [Block(1, "attention"), Block(1, "mlp")])
    save(model, tiny_tokenizer(), tmp_path / "model", made_by={"method": "by hand"})
    path = write_gguf(tmp_path / "model", tmp_path / "model.gguf")
    assert key(path, "general.architecture") == "llama"
    assert key(path, "llama.block_count") == 3
    third = tiny_model("llama").model.layers[2].mlp.up_proj.weight.numpy()
    np.testing.assert_array_equal(tensors(path)["blk.1.ffn_up.weight"], third)


def test_gemma_norms_are_written_with_the_one_that_its_code_adds(tmp_path):
    path = write_gguf(tiny_checkpoint(tmp_path / "model", "gemma"), tmp_path / "model.gguf")
    norm = tiny_model("gemma").model.norm.weight.numpy()
    np.testing.assert_allclose(tensors(path)["output_norm.weight"], norm + 1)


@pytest.mark.parametrize(("precision", "step"), [("f16", 2**-11), ("bf16", 2**-8), ("q8_0", 2**-7)])
def test_matrices_are_rounded_and_vectors_are_not(tmp_path, precision, step):
    folder = tiny_checkpoint(tmp_path / "model", hidden_size=64)
    path = write_gguf(folder, tmp_path / "model.gguf", precision)
    assert read_gguf_header(path).architecture == "llama"
    model, found = tiny_model("llama", hidden_size=64).model, tensors(path)
    down = model.layers[0].mlp.gate_proj.weight.numpy()
    error = np.abs(found["blk.0.ffn_gate.weight"] - down).max()
    assert 0 < error <= step * np.abs(down).max()
    np.testing.assert_array_equal(found["output_norm.weight"], model.norm.weight.numpy())
    kinds = {one.name: one.tensor_type.name for one in reader(path).tensors}
    # Rows of 80 are no whole blocks of 32.
    assert kinds["blk.0.ffn_down.weight"] == (
        "F16" if precision == "q8_0" else PRECISIONS[precision][0]
    )
    assert key(path, "general.file_type") == gguf.LlamaFileType[PRECISIONS[precision][1]]


def test_llama_3_frequencies_are_in_the_file(tmp_path):
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    folder = tiny_checkpoint(tmp_path / "model", rope_parameters=rope)
    factors = tensors(write_gguf(folder, tmp_path / "model.gguf"))["rope_freqs.weight"]
    assert factors[0] == pytest.approx(1)
    assert factors[-1] == pytest.approx(8)
    assert 1 < factors[1] < 8


def test_a_file_of_ids_has_neither_text_nor_an_end(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    assert gguf_refusal(folder) is not None
    assert gguf_refusal(folder, text=False) is None
    path = write_gguf(folder, tmp_path / "model.gguf", text=False)
    assert key(path, "tokenizer.ggml.tokens")[300] == "300 "
    assert not [name for name in reader(path).fields if name.endswith("_token_id")]


def test_scores_merge_in_the_order_of_the_list(tmp_path):
    vocabulary = {"<unk>": 0, "<0x41>": 1, "a": 2, "b": 3, "bc": 4, "c": 5, "ab": 6, "</s>": 7}
    tokenizer = {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "_"}]},
        "model": {
            "type": "BPE",
            "byte_fallback": True,
            "unk_token": "<unk>",
            "vocab": vocabulary,
            "merges": [["a", "b"], "b c"],
        },
        "added_tokens": [{"id": 7, "content": "</s>", "special": True}],
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    found = read_vocabulary(tmp_path, 9)
    assert (found.model, found.space_first) == ("llama", True)
    assert found.scores[6] > found.scores[4] > found.scores[2]
    assert found.types == [2, 6, 1, 1, 1, 1, 1, 3, 5]
    assert found.tokens[8] == "[PAD8]"


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        ([{"type": "ByteLevel"}], "gpt-2"),
        ([{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel"}], "smollm"),
        (
            [
                {
                    "type": "Split",
                    "pattern": {
                        "Regex": r"(?i:'s)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                    },
                },
                {"type": "ByteLevel"},
            ],
            "llama-bpe",
        ),
        (
            [
                {
                    "type": "Split",
                    "pattern": {
                        "Regex": r"(?i:'s)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                    },
                },
                {"type": "ByteLevel"},
            ],
            "qwen2",
        ),
        ([{"type": "Split", "pattern": {"Regex": r"\w+"}}, {"type": "ByteLevel"}], None),
        ([{"type": "Whitespace"}], None),
    ],
)
def test_the_cut_of_words_is_known_or_refused(tmp_path, steps, name):
    tokenizer = {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    if name is None:
        with pytest.raises(PrunebenchError, match="the pre-tokenizer"):
            read_vocabulary(tmp_path, 1)
    else:
        assert read_vocabulary(tmp_path, 1).cut == name


@pytest.mark.parametrize(
    ("family", "options", "reason"),
    [
        ("opt", {}, "a opt model cannot be written"),
        ("qwen2", {}, "some layers read only a window"),
        ("llama", {"hidden_act": "gelu"}, "its MLPs have gelu instead of silu"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "its positions are scaled by 'dynamic'",
        ),
    ],
)
def test_what_llama_cpp_computes_differently_is_refused(tmp_path, family, options, reason):
    folder = tiny_checkpoint(tmp_path / "model", family, **options)
    assert reason in (gguf_refusal(folder) or "")
    with pytest.raises(PrunebenchError, match=reason):
        write_gguf(folder, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


def test_layers_that_differ_are_refused_in_families_that_deci_does_not_compute(tmp_path):
    model = tiny_model("qwen3")
    remove_blocks(model, [Block(1, "mlp")])
    save(model, tiny_tokenizer(), tmp_path / "model", made_by={"method": "by hand"})
    assert "layer 1 has another shape" in (gguf_refusal(tmp_path / "model") or "")


def test_an_unknown_precision_is_refused(tmp_path):
    with pytest.raises(PrunebenchError, match="not written in 'q8'") as error:
        write_gguf(tmp_path, tmp_path / "model.gguf", "q8")
    assert error.value.hint == "did you mean 'q8_0'?"


def test_a_model_whose_sub_blocks_have_channels_of_their_own_is_refused(tmp_path):
    model = tiny_model("llama")
    index_residual(model, {Block(0, "mlp"): range(40)}, {Block(0, "mlp"): range(40)})
    save(model, tiny_tokenizer(), tmp_path / "model", made_by={"method": "by hand"})
    assert "channels of the residual stream of their own" in (
        gguf_refusal(tmp_path / "model") or ""
    )
