from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from tiny import tiny_model, tiny_tokenizer


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(folder))
    return folder


@pytest.fixture
def connections(monkeypatch) -> list[Any]:
    """Refuses every attempt to connect or to look up a name, and lists them."""
    attempts: list[Any] = []

    def refuse(*arguments):
        attempts.append(arguments)
        raise OSError("no connection is allowed in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return attempts


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory) -> Path:
    """The tiny Llama with its tokenizer as an F32 GGUF file."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    config, state = model.config, model.state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    backend = tokenizer.backend_tokenizer
    vocabulary = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if index < 2 else 1 for _, index in vocabulary])  # control, normal
    writer.add_token_merges([" ".join(pair) for pair in _merges(backend)])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(1)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in state.items():
        if name == "lm_head.weight":
            continue  # tied
        array = tensor.numpy()
        if "q_proj" in name:
            array = _interleaved(array, config.num_attention_heads)
        if "k_proj" in name:
            array = _interleaved(array, config.num_key_value_heads)
        writer.add_tensor(
            names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(array)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _merges(backend: Any) -> list[list[str]]:
    import json

    return json.loads(backend.to_str())["model"]["merges"]


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """The row order of GGUF's Llama.

    It rotates neighbouring rows, transformers the two halves of a head.
    """
    rows, columns = weight.shape
    return (
        weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
    )
