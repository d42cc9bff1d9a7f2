from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from prunebench.errors import PrunebenchError
from prunebench.model.folder import read_checkpoint
from prunebench.model.safetensors_header import safetensors_entries
from prunebench.model.safetensors_io import NAMES, TensorFiles, layout, new_file
from prunebench.model.streamed import open_tensors
from tiny import tiny_checkpoint


def test_a_file_that_becomes_shorter_is_named(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, "llama")
    with open_tensors(read_checkpoint(tmp_path)) as source:
        (tmp_path / "model.safetensors").write_bytes(
            (tmp_path / "model.safetensors").read_bytes()[:60_000]
        )
        with pytest.raises(PrunebenchError, match=r"model\.safetensors has become shorter"):
            for name in source.entries:
                source.read(name)


@settings(max_examples=40)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8, alphabet="abc.é"),
        st.tuples(st.sampled_from(sorted(NAMES, key=str)), st.lists(st.integers(0, 5), max_size=3)),
        max_size=6,
    )
)
def test_files_written_in_pieces_equal_those_of_safetensors(tmp_path_factory, described) -> None:
    folder = tmp_path_factory.mktemp("files")
    tensors = {
        name: torch.randint(0, 2, shape).to(dtype) for name, (dtype, shape) in described.items()
    }
    save_file(tensors, folder / "theirs", metadata={"format": "pt"})
    with TensorFiles(new_file(folder / "ours", tensors), write=True) as target:
        for name, tensor in tensors.items():
            half = tensor.numel() // 2
            for start, part in ((0, tensor.flatten()[:half]), (half, tensor.flatten()[half:])):
                target.write(name, part, start)
        assert all(torch.equal(target.read(name), tensor) for name, tensor in tensors.items())
    assert (folder / "ours").read_bytes() == (folder / "theirs").read_bytes()
    assert layout(tensors).nbytes == (folder / "theirs").stat().st_size


def test_pieces_together_are_the_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunebench.model.safetensors_io.PIECE", 7)
    save_file({"a": torch.arange(30.0).view(5, 6)}, tmp_path / "file")
    with TensorFiles(safetensors_entries(tmp_path / "file")) as source:
        pieces = list(source.pieces("a"))
    assert [start for start, _ in pieces] == [0, 7, 14, 21, 28]
    assert torch.equal(torch.cat([piece for _, piece in pieces]), torch.arange(30.0))
