"""Where the layers of the dense model are found again after they were removed."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from prunebench.model.folder import read_checkpoint
from prunebench.model.load import load, load_bare
from prunebench.model.streamed import StreamedModel, open_tensors


class DenseSource(Protocol):
    """Lends a dense model."""

    def lent(self, layers: Collection[int], device: str) -> AbstractContextManager[Any]:
        """The dense model; only these decoder layers need weights, on ``device``."""

    def whole(self, device: str) -> AbstractContextManager[Any]:
        """The dense model with all its weights, on ``device``."""


@dataclass(frozen=True)
class CheckpointSource:
    """The checkpoint that the model was loaded from: only the layers that are asked for are read.

    So memory never holds a weight of the dense model twice.
    """

    folder: Path
    dtype: str
    """'float32', 'bfloat16' or 'float16', as the model was loaded."""

    @contextmanager
    def lent(self, layers: Collection[int], device: str) -> Iterator[Any]:
        """As `DenseSource` says. Raises PrunebenchError if the files have no such layers."""
        model = load_bare(self.folder, dtype=self.dtype, device=device).model
        with open_tensors(read_checkpoint(self.folder)) as tensors, ExitStack() as lent:
            streamed = StreamedModel(model, tensors, device=device)
            for index in layers:
                lent.enter_context(streamed.layer(index, changes=False))
            yield model

    @contextmanager
    def whole(self, device: str) -> Iterator[Any]:
        """As `DenseSource` says: memory holds the dense model beside the pruned one."""
        model = load(self.folder, dtype=self.dtype, device=device).model
        yield model.eval().requires_grad_(requires_grad=False)
