from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from prunebench.errors import PrunebenchError
from prunebench.model.headers import Header, gguf_header, safetensors_header
from tiny import tiny_model


def _outcome(read, path: Path) -> Header | str:
    try:
        return read(path)
    except PrunebenchError as error:
        return "names the file" if path.name in error.message else str(error)


@pytest.fixture
def weights(tmp_path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(
        {"a.weight": torch.ones(3, 5), "lm_head.weight": torch.ones(7, dtype=torch.float16)}, path
    )
    return path


def test_parameters_of_safetensors(weights):
    header = safetensors_header(weights)
    assert header == Header(frozenset({"a.weight", "lm_head.weight"}), 22)
    assert safetensors_header(weights, tied=True).parameters == 15


def test_causal_masks_that_old_checkpoints_store_are_no_parameters(tmp_path):
    path = tmp_path / "model.safetensors"
    mask = "gpt_neox.layers.0.attention.bias"
    save_file({"a": torch.ones(4), mask: torch.ones(1, 1, 8, 8, dtype=torch.bool)}, path)
    assert safetensors_header(path).parameters == 4


def test_packed_weights_have_no_parameter_count(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(4), "qweight": torch.ones(4, dtype=torch.int32)}, path)
    assert safetensors_header(path).parameters is None


@pytest.mark.parametrize("kept", [0, 5, 8, 20, -1])
def test_a_truncated_file_is_named(weights, kept):
    data = weights.read_bytes()
    weights.write_bytes(data[:kept])
    with pytest.raises(PrunebenchError, match=r"model\.safetensors"):
        safetensors_header(weights)


def test_truncation_is_said_in_bytes(weights):
    size = weights.stat().st_size
    weights.write_bytes(weights.read_bytes()[:-3])
    with pytest.raises(
        PrunebenchError, match=f"is truncated: {size - 3} bytes, its header names {size}"
    ):
        safetensors_header(weights)


@given(header=st.recursive(st.none() | st.integers() | st.text(max_size=3), lambda inner: st.dictionaries(st.text(max_size=3), inner) | st.lists(inner)))  # fmt: skip
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None
)
def test_any_json_as_header_is_read_or_refused(tmp_path, header):
    path = tmp_path / "model.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    assert _outcome(safetensors_header, path) in {Header(frozenset(), 0), "names the file"}


def test_parameters_of_gguf(tiny_gguf):
    header = gguf_header(tiny_gguf)
    assert header.parameters == sum(
        parameter.numel() for parameter in tiny_model("llama").parameters()
    )
    assert "token_embd.weight" in header.names


@pytest.mark.parametrize("lost", [1, 1000, 150_000])
def test_a_truncated_gguf_is_named(tiny_gguf, tmp_path, lost):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_gguf.read_bytes()[:-lost])
    with pytest.raises(PrunebenchError, match=r"cut\.gguf is truncated"):
        gguf_header(cut)


@pytest.mark.parametrize("content", [b"", b"GGU", b"PK\x03\x04 something else"])
def test_what_is_no_gguf_is_said(tmp_path, content):
    path = tmp_path / "other.gguf"
    path.write_bytes(content)
    with pytest.raises(PrunebenchError, match="not a GGUF file"):
        gguf_header(path)


@given(place=st.integers(0, 5000), value=st.integers(0, 255), end=st.integers(0, 20_000))
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None
)
def test_a_damaged_gguf_is_read_or_refused(tiny_gguf, tmp_path, place, value, end):
    data = bytearray(tiny_gguf.read_bytes()[:end] if end < 15_000 else tiny_gguf.read_bytes())
    if place < len(data):
        data[place] = value
    path = tmp_path / "damaged.gguf"
    path.write_bytes(data)
    outcome = _outcome(gguf_header, path)
    assert isinstance(outcome, Header) or outcome == "names the file"
