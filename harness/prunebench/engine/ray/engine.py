"""The engine class: its options, and the check that every cell fits on some node."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from pydantic import Field

from prunebench.engine.ray.cluster import joined, living_nodes, needs_of
from prunebench.engine.ray.driver import Driver
from prunebench.engine.session import Session, session_of
from prunebench.errors import PrunebenchError
from prunebench.experiment.cell import Cell
from prunebench.plugin.api import options
from prunebench.plugin.api.engine import Engine, EngineContext
from prunebench.record.record import Record
from prunebench.store.lock import clean_up


class RayEngine(Engine):
    """Cells as tasks of a Ray cluster, which is started here if no address is given.

    A cell whose node is lost becomes a failed record.
    """

    name = "ray"

    class Options(options.Options):
        address: str | None = Field(
            None,
            description="of a running cluster, HOST:PORT or auto; default: RAY_ADDRESS if that is "
            "set, otherwise a cluster is started here",
        )
        patience_s: float = Field(
            60.0,
            ge=0,
            description="a cell fails if for this many seconds no living node has room for it",
        )

    def run(self, cells: Sequence[Cell], context: EngineContext) -> Iterator[Record]:
        if not cells:
            return
        session = session_of(context)
        try:
            yield from self._run(cells, session)
        finally:
            # An agent that Ray killed in the middle could not clean up itself.
            clean_up(session.starter.mark)

    def _run(self, cells: Sequence[Cell], session: Session) -> Iterator[Record]:
        with joined(self.options.address or os.environ.get("RAY_ADDRESS") or None) as ray:
            nodes = living_nodes(ray)
            needed = [(cell, needs_of(cell, nodes)) for cell in cells]
            for cell, needs in needed:
                if not any(needs.fit(node) for node in nodes):
                    raise PrunebenchError(
                        f"{cell.label} needs a node with {needs}, "
                        f"and none of the {len(nodes)} has that",
                        hint="change `gpus:`, `threads:` or `limits: {memory: ...}` of the suite, "
                        "or add nodes",
                    )
            yield from Driver(ray, session, self.options.patience_s).run(needed)
