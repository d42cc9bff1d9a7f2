"""An engine for tests, as a plugin file: cells run in the process of the run, without isolation.

It saves a new interpreter and the imports of torch and transformers, some seconds a run. What a
process of its own is good for is tested with the local engine.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

from prunebench import Engine, hookimpl
from prunebench.cell.__main__ import command
from prunebench.cell.events import EventWriter
from prunebench.cell.run import run_cell

FILE = Path(__file__)


class InProcess(Engine):
    """Runs one cell after the other, here."""

    name = "in-process"

    def run(self, cells: Sequence[object], context: object) -> Iterator[object]:
        import torch

        for cell in cells:
            context.started(cell)
            threads, random_state = torch.get_num_threads(), torch.random.get_rng_state()
            with mock.patch.dict(os.environ):
                record = run_cell(
                    cell,
                    events=EventWriter(io.StringIO()),
                    command=command(context.folder / "specs" / f"{cell.id}.json"),
                    keep=context.folder / "models" / cell.id if cell.keep_model else None,
                )
            torch.set_num_threads(threads)
            torch.random.set_rng_state(random_state)
            yield record


@hookimpl
def prunebench_register_engine() -> type[Engine]:
    return InProcess
