from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunebench.errors import PrunebenchError
from prunebench.model.gguf_header import read_gguf_header
from tiny import tiny_model


def test_parameters_are_counted(tiny_gguf):
    expected = sum(parameter.numel() for parameter in tiny_model("llama").parameters())
    assert read_gguf_header(tiny_gguf) == ("llama", expected)


@pytest.mark.parametrize("lost", [1, 1000, 150_000])
def test_a_truncated_gguf_is_named(tiny_gguf, tmp_path, lost):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_gguf.read_bytes()[:-lost])
    with pytest.raises(PrunebenchError, match=r"cut\.gguf is truncated"):
        read_gguf_header(cut)


@pytest.mark.parametrize("content", [b"", b"GGU", b"PK\x03\x04 something else"])
def test_another_kind_of_file_is_refused(tmp_path, content):
    path = tmp_path / "other.gguf"
    path.write_bytes(content)
    with pytest.raises(PrunebenchError, match="not a GGUF file"):
        read_gguf_header(path)


@given(offset=st.integers(0, 5000), value=st.integers(0, 255), end=st.integers(0, 20_000))
@settings(max_examples=100)
def test_a_damaged_gguf_is_read_or_refused(tiny_gguf, tmp_path, offset, value, end):
    data = bytearray(tiny_gguf.read_bytes()[:end] if end < 15_000 else tiny_gguf.read_bytes())
    if offset < len(data):
        data[offset] = value
    path = tmp_path / "damaged.gguf"
    path.write_bytes(data)
    try:
        assert isinstance(read_gguf_header(path).parameters, int)
    except PrunebenchError as error:
        assert path.name in error.message
