"""Streaming on one type: every layer is lent as it is in memory, and written as it would be saved."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import torch

from families.levels import WORKS, level
from families.weights import planned, refused
from prunebench import PrunebenchError, anatomy, load_pruned
from prunebench.model.checkpoint import save, save_by_pieces
from prunebench.model.folder import read_checkpoint
from prunebench.model.load import load_bare
from prunebench.model.streamed import StreamedModel, open_tensors
from tiny import tiny_tokenizer


@level("stream")
def stream(model_type: str) -> str:
    with tempfile.TemporaryDirectory() as base, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(base) / "model"
        try:
            model = planned(model_type)
            anatomy(model)
            save(model, tiny_tokenizer(), folder, made_by={})
            whole = load_pruned(folder)
            bare = load_bare(folder, dtype="float32", device="cpu").model
            written = _through(bare, folder, whole, Path(base) / "out")
        except PrunebenchError as error:
            return refused(error)
    wanted = whole.state_dict()
    assert written.keys() == wanted.keys()
    for name, tensor in written.items():
        assert torch.equal(tensor, wanted[name]), f"{name} is another one after streaming"
    return WORKS


def _through(bare: object, folder: Path, whole: object, out: Path) -> dict[str, torch.Tensor]:
    source = open_tensors(read_checkpoint(folder))
    with source, save_by_pieces(bare, None, out, shard_bytes=1 << 30) as (_, target):
        streamed = StreamedModel(bare, source, target)
        for index, layer in enumerate(anatomy(bare).layers):
            dense = anatomy(whole).layers[index].state_dict()
            with streamed.layer(index, changes=True):
                for name, tensor in layer.state_dict().items():
                    assert torch.equal(tensor, dense[name]), f"layer {index}, {name} is lent wrong"
        streamed.copy_rest()
    return load_pruned(out).state_dict()
