"""What travels between the driver of a run and the agents on the nodes of a Ray cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

# A cell gets the driver's variables with these prefixes, because Ray sets some of them as it likes.
TRAVELLING = (
    "PRUNEBENCH_",
    "HF_",
    "TRANSFORMERS_",
    "OMP_",
    "MKL_",
    "OPENBLAS_",
    "TORCH_",
    "PYTORCH_",
    "TOKENIZERS_",
)

Kind = Literal["at", "event", "log", "partial results", "model", "record"]
Message = tuple[Kind, Any]
"""('at', host name), ('event', (phase, done, total)), ('log' or 'partial results', bytes),
('model', (file name, bytes)) and ('record', JSON text)."""


@dataclass(frozen=True)
class RunContext:
    """What all cells of a run need on their nodes."""

    version: str
    """Of prunebench; a node must have the same."""
    mark: str
    environment: Mapping[str, str]
    plugins: tuple[tuple[str, bytes], ...]
    """Names and contents of the run's plugin files, which the node does not have."""


@dataclass(frozen=True)
class CellTask:
    """One cell to run."""

    cell: str
    """As JSON."""
    number: int
    partial_results: bytes | None = None
    """What an interrupted run has measured of it already."""


def travelling(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a cell gets from the driver."""
    return {name: value for name, value in environment.items() if name.startswith(TRAVELLING)}
