from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from prunebench.errors import PrunebenchError
from prunebench.model.safetensors_header import safetensors_parameters


@pytest.fixture
def weights(tmp_path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(
        {"a.weight": torch.ones(3, 5), "lm_head.weight": torch.ones(7, dtype=torch.float16)}, path
    )
    return path


def test_parameters_are_counted_with_and_without_a_tied_head(weights):
    assert safetensors_parameters(weights) == 22
    assert safetensors_parameters(weights, tied=True) == 15


def test_causal_masks_of_old_checkpoints_do_not_count_as_parameters(tmp_path):
    path = tmp_path / "model.safetensors"
    mask = "gpt_neox.layers.0.attention.bias"
    save_file({"a": torch.ones(4), mask: torch.ones(1, 1, 8, 8, dtype=torch.bool)}, path)
    assert safetensors_parameters(path) == 4


def test_packed_weights_have_no_parameter_count(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(4), "qweight": torch.ones(4, dtype=torch.int32)}, path)
    assert safetensors_parameters(path) is None


@pytest.mark.parametrize("kept", [0, 5, 8, 20, -1])
def test_a_truncated_file_is_named(weights, kept):
    data = weights.read_bytes()
    weights.write_bytes(data[:kept])
    with pytest.raises(PrunebenchError, match=r"model\.safetensors"):
        safetensors_parameters(weights)


def test_the_message_gives_the_size_and_the_expected_size(weights):
    size = weights.stat().st_size
    weights.write_bytes(weights.read_bytes()[:-3])
    with pytest.raises(
        PrunebenchError, match=f"is truncated: {size - 3} bytes, its header names {size}"
    ):
        safetensors_parameters(weights)


@given(header=st.recursive(st.none() | st.integers() | st.text(max_size=3), lambda inner: st.dictionaries(st.text(max_size=3), inner) | st.lists(inner)))  # fmt: skip
@settings(max_examples=50)
def test_any_json_as_header_is_read_or_refused(tmp_path, header):
    path = tmp_path / "model.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    try:
        assert safetensors_parameters(path) == 0
    except PrunebenchError as error:
        assert path.name in error.message
