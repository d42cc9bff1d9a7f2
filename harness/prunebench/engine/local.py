"""The local engine: cells on this machine, as many at once as its GPUs have room for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import Field

from prunebench.engine.gpus import slots_for
from prunebench.engine.session import session_of
from prunebench.engine.slots import side_by_side
from prunebench.experiment.cell import Cell
from prunebench.plugin.api import options
from prunebench.plugin.api.engine import Engine, EngineContext
from prunebench.record.record import Record


class LocalEngine(Engine):
    """Cells on this machine: one at a time, or one per GPU; timed phases always run alone."""

    name = "local"

    class Options(options.Options):
        slots: int | None = Field(
            None,
            gt=0,
            description="cells at once; default: one, or as many as the GPUs have room for. Timed "
            "phases run alone, all others side by side",
        )

    def run(self, cells: Sequence[Cell], context: EngineContext) -> Iterator[Record]:
        """Run ``cells`` in order."""
        slots = slots_for(cells, self.options.slots)
        if len(slots) > 1 or slots[0].environment:
            yield from side_by_side(cells, slots, session_of(context))
            return
        for cell in cells:
            context.started(cell)
            yield context.run_cell(cell)
