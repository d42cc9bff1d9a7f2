"""Results inside a cell that are kept until its record is written, so that a crash does not cost them.

Pruning is repeated, and what was measured is taken over only where it gives the very same weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError

from prunebench.schema import Part
from prunebench.store.run_folder import write_atomically

T = TypeVar("T", bound=Part)


class Stages:
    """The finished stages of one cell in the file ``path``; None keeps nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._data: dict[str, Any] = {}
        self.reused: list[str] = []
        """The names of the stages that were taken over."""

    def begin(self, model: Any) -> None:
        """From here on the stages are those of the weights of ``model``; results for others are dropped."""
        if self._path is None:
            return
        weights = fingerprint(model)
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            found = None
        same = (
            isinstance(found, dict)
            and found.get("weights") == weights
            and isinstance(found.get("results"), dict)
        )
        self._data = found if same else {"weights": weights, "results": {}}

    def get(self, name: str, kind: type[T]) -> list[T] | None:
        """The results of the stage ``name``; None where it has not been finished."""
        entries = self._data.get("results", {}).get(name)
        try:
            results = None if entries is None else [kind.model_validate(entry) for entry in entries]
        except (ValidationError, TypeError):
            return None
        if results is not None:
            self.reused.append(name)
        return results

    def put(self, name: str, results: Sequence[Part]) -> None:
        """Keep the results of the stage ``name``. Raises PrunebenchError where they cannot be written."""
        if self._path is not None:
            self._data["results"][name] = [
                result.model_dump(mode="json", by_alias=True) for result in results
            ]
            write_atomically(self._path, json.dumps(self._data) + "\n")


@torch.no_grad()
def fingerprint(model: Any) -> str:
    """A hash of the weights, at the speed of reading them: names, shapes, and torch's hash of every tensor's bits."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        # What stays in the checkpoint's files is pinned by the cell's id
        bits = "on disk" if weight.is_meta else torch.hash_tensor(weight).view(torch.int64).item()
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype} {bits}\n".encode())
    return digest.hexdigest()
