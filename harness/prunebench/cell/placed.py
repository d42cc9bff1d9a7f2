"""Cells whose model is spread over several places: what is loaded when, and what is counted where weights stay on disk.

A method prunes the model in host memory, layer by layer on a GPU where there is one, and the result is spread
afterwards. A model that is not pruned goes to its places at once, straight from its files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import psutil
import torch

from prunebench.errors import PrunebenchError
from prunebench.measure.audit import LayerCount, count_layer
from prunebench.model.anatomy import anatomy
from prunebench.model.folder import read_checkpoint
from prunebench.model.load import LoadedModel, load, load_bare, load_dispatched
from prunebench.model.placement import is_offloaded
from prunebench.model.streamed import StreamedModel, open_tensors

if TYPE_CHECKING:
    from pathlib import Path

    from prunebench.experiment.model import ModelRef
    from prunebench.plugin.api.method import Method


def stays_as_it_is(method: Method, recovery: object | None) -> bool:
    """Whether nothing will be changed: such a model need never be in memory as a whole."""
    return method.structure == {"none"} and recovery is None


def load_placed(model: ModelRef, folder: Path, device: str, *, as_it_is: bool) -> LoadedModel:
    """Load where the cell's ``model`` belongs before it is pruned; ``device`` is the cell's.

    Raises PrunebenchError where it is to be pruned and host memory cannot hold it.
    """
    common: dict[str, Any] = {"dtype": model.dtype, "trust_remote_code": model.trust_remote_code}
    if model.placement is None:
        return load(folder, device=device, **common)
    if as_it_is:
        return load_dispatched(folder, device=device, placement=model.placement, **common)
    asked = dict(model.placement.max_memory)
    room = asked.get("cpu", 0) if asked else psutil.virtual_memory().available
    needed = (read_checkpoint(folder).parameters or 0) * getattr(torch, model.dtype).itemsize
    if needed > room:
        raise PrunebenchError(
            f"pruning {model.name} takes {needed / 1e9:.3g} GB of host memory, and it may have {room / 1e9:.3g} GB",
            hint="prune it with `prunebench prune MODEL METHOD --stream --out FOLDER`, and give FOLDER to the method dense",
        )
    return load(folder, device="cpu", **common)


def countable(
    loaded: LoadedModel, folder: Path, dtype: str, patterns: Sequence[tuple[int, int]]
) -> tuple[Any, list[LayerCount] | None]:
    """The model to audit, and what is counted on its layers: from the files, one at a time, where weights are offloaded."""
    if not is_offloaded(loaded.model):
        return loaded.model, None
    model = load_bare(folder, dtype=dtype, device="cpu").model
    parts = anatomy(model)
    counts = []
    with open_tensors(read_checkpoint(folder)) as source:
        streamed = StreamedModel(model, source)
        for index, layer in enumerate(parts.layers):
            with streamed.layer(index, changes=False):
                counts.append(count_layer(parts.linears(layer), index, patterns))
    return model, counts
