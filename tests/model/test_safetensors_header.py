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
from prunebench.model.safetensors_header import parameter_count, safetensors_entries


def stored(path: Path, **tensors: torch.Tensor) -> int | None:
    """The parameters of a tied model of these tensors."""
    save_file(tensors, path)
    return parameter_count(safetensors_entries(path), tied=True)


@pytest.fixture
def weights(tmp_path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file({"a.weight": torch.ones(3, 5), "b.weight": torch.ones(7, dtype=torch.half)}, path)
    return path


def test_a_stored_head_counts_unless_it_is_the_embeddings_again(tmp_path):
    path = tmp_path / "model.safetensors"
    table = torch.arange(1200.0).reshape(30, 40)
    other = table.clone()
    other[-1, -1] = 0
    names = {"model.embed_tokens.weight": table}
    assert stored(path, **names) == 1200
    assert stored(path, **names, **{"lm_head.weight": table.clone()}) == 1200
    assert stored(path, **names, **{"lm_head.weight": other}) == 2400
    assert stored(path, **names, **{"lm_head.weight": table.half()}) == 2400
    assert stored(path, **{"lm_head.weight": table}) == 1200
    save_file({**names, "lm_head.weight": table.clone()}, path)
    assert parameter_count(safetensors_entries(path), tied=False) == 2400


def test_large_heads_are_compared_to_their_last_byte(tmp_path, monkeypatch):
    monkeypatch.setattr("prunebench.model.safetensors_header._PIECE", 7)
    test_a_stored_head_counts_unless_it_is_the_embeddings_again(tmp_path)


def test_causal_masks_of_old_checkpoints_do_not_count_as_parameters(tmp_path):
    mask = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    tensors = {"a": torch.ones(4), "gpt_neox.layers.0.attention.bias": mask}
    assert stored(tmp_path / "model.safetensors", **tensors) == 4


def test_packed_weights_have_no_parameter_count(tmp_path):
    tensors = {"a": torch.ones(4), "qweight": torch.ones(4, dtype=torch.int32)}
    assert stored(tmp_path / "model.safetensors", **tensors) is None


@pytest.mark.parametrize("kept", [0, 5, 8, 20, -1])
def test_a_truncated_file_is_named(weights, kept):
    data = weights.read_bytes()
    weights.write_bytes(data[:kept])
    with pytest.raises(PrunebenchError, match=r"model\.safetensors"):
        safetensors_entries(weights)


def test_the_message_gives_the_size_and_the_expected_size(weights):
    size = weights.stat().st_size
    weights.write_bytes(weights.read_bytes()[:-3])
    with pytest.raises(
        PrunebenchError, match=f"is truncated: {size - 3} bytes, its header names {size}"
    ):
        safetensors_entries(weights)


@given(header=st.recursive(st.none() | st.integers() | st.text(max_size=3), lambda inner: st.dictionaries(st.text(max_size=3), inner) | st.lists(inner)))  # fmt: skip
@settings(max_examples=50)
def test_any_json_as_header_is_read_or_refused(tmp_path, header):
    path = tmp_path / "model.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    try:
        assert safetensors_entries(path) == {}
    except PrunebenchError as error:
        assert path.name in error.message
