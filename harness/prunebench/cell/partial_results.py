"""Keep the results of a cell on disk until its record is written, so that no crash loses them.

The next run prunes again, which is cheap beside measuring, and reuses a result only if the pruned
weights are identical.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError

from prunebench.model.adapter import attached
from prunebench.schema import Part
from prunebench.store.atomic import write_atomically
from prunebench.store.run_folder import training_folder

T = TypeVar("T", bound=Part)

MEASURED = "measured"
"""The key of what methods measured before they pruned: see `PartialResults.remember`."""


class PartialResults:
    """The results that one cell has so far, in the file ``path``; with None nothing is kept."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._data: dict[str, Any] = {}
        self.reused: list[str] = []
        """The names of the results that were taken from the file."""

    @property
    def training(self) -> Path | None:
        """The folder beside the file in which trainings keep their state."""
        return None if self._path is None else training_folder(self._path)

    def begin(self, model: Any) -> None:
        """From here on keep results of these weights; drop those of others."""
        if self._path is None:
            return
        weights = fingerprint(model)
        found = self._stored()
        same = found.get("weights") == weights and isinstance(found.get("results"), dict)
        self._data = found if same else {"weights": weights, "results": {}, **_measured(found)}

    def remember(self, name: str, measure: Callable[[], Any]) -> Any:
        """What ``measure`` returned, a value of JSON, when this cell came here for the first time.

        So a cell that was interrupted makes the same choice again, although it would measure other
        times. Unlike results, these values do not depend on the pruned weights: they decide them.
        """
        found = self._stored()
        measured = _measured(found)[MEASURED]
        if name in measured:
            self.reused.append(name)
        else:
            measured[name] = json.loads(json.dumps(measure()))
            if self._path is not None:
                write_atomically(self._path, json.dumps(found | {MEASURED: measured}) + "\n")
        return measured[name]

    def _stored(self) -> dict[str, Any]:
        """What is in the file; nothing if it is damaged or not there."""
        if self._path is None:
            return {}
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def get(self, name: str, kind: type[T]) -> list[T] | None:
        """The results kept as ``name``, or None."""
        entries = self._data.get("results", {}).get(name)
        try:
            results = None if entries is None else [kind.model_validate(entry) for entry in entries]
        except (ValidationError, TypeError):
            # Another version of prunebench wrote them; measure again.
            return None
        if results is not None:
            self.reused.append(name)
        return results

    def put(self, name: str, results: Sequence[Part]) -> None:
        """Keep ``results`` as ``name``. Raises PrunebenchError if they cannot be written."""
        if self._path is not None:
            self._data["results"][name] = [
                result.model_dump(mode="json", by_alias=True) for result in results
            ]
            write_atomically(self._path, json.dumps(self._data) + "\n")


def _measured(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The part of a file that is kept whatever the weights are."""
    values = found.get(MEASURED)
    return {MEASURED: values if isinstance(values, dict) else {}}


@torch.no_grad()
def fingerprint(model: Any) -> str:
    """A hash of names, shapes, dtypes and weights, at the speed of reading them.

    `torch.hash_tensor` hashes the bits of each tensor where it lies, so nothing is copied to the
    CPU.
    """
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        # Weights that stay in the checkpoint's files are pinned by the cell's id.
        bits = "on disk" if weight.is_meta else torch.hash_tensor(weight).view(torch.int64).item()
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype} {bits}\n".encode())
    if (adapter := attached(model)) is not None:
        for path, pair in adapter.updates.items():
            both = [torch.hash_tensor(each).view(torch.int64).item() for each in pair]
            digest.update(f"{path} {adapter.alpha} {both}\n".encode())
    return digest.hexdigest()
