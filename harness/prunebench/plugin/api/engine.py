"""What an engine is: it decides where the cells of a run go, and gives their records.

Nothing here imports torch or what engines are made of.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from prunebench.plugin.api import method

if TYPE_CHECKING:
    from prunebench.engine.launcher import Launcher
    from prunebench.experiment.cell import Cell
    from prunebench.record.record import Record, Status

BUILT_IN = ("local", "ray")
"""Names that no plugin may take."""


class EngineContext(ABC):
    """What a run offers to its engine. Everything here is to be called from the thread that asks for the records."""

    folder: Path
    """The run folder; specs/ID.json in it is what `python -m prunebench.cell` takes, cells/ID.log is the cell's log."""
    starter: Launcher
    """Starts cells on this machine, one at a time (`prunebench.engine.launcher`)."""

    @abstractmethod
    def started(self, cell: Cell) -> None:
        """Tell those who watch that ``cell`` begins now."""

    @abstractmethod
    def moved(self, cell: Cell, phase: str, done: int = 0, total: int = 0) -> None:
        """Tell them how far it is: ``done`` of ``total`` parts of a phase, 0 of 0 where that is not known."""

    @abstractmethod
    def run_here(self, cell: Cell) -> Record:
        """Run ``cell`` on this machine in a process of its own, held to its limits, and come back with its record."""

    @abstractmethod
    def record(self, cell: Cell, text: str | bytes) -> Record:
        """The record that `python -m prunebench.cell` wrote elsewhere, made one of this run.

        Raises PrunebenchError where the text is no record of ``cell``.
        """

    @abstractmethod
    def lost(
        self,
        cell: Cell,
        *,
        phase: str,
        kind: str,
        message: str,
        hint: str | None = None,
        status: Status = "failed",
    ) -> Record:
        """The failed record of a cell that left none: the phase it was last seen in, and what became of it.

        ``kind`` is what kind of end it was, in two or three words; the end of the cell's log goes along.
        """


class Engine(ABC):
    """Where cells run. Subclass it, and return the class from `prunebench_register_engine`.

    The instance lives in the run's own process; `prunebench run --engine NAME --engine-option KEY=VALUE`.
    """

    name: ClassVar[str]

    class Options(method.Options):
        """Options of this engine; override with your own subclass of `prunebench.Options`. Their values come as text."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def run(self, cells: Sequence[Cell], context: EngineContext) -> Iterator[Record]:
        """Run ``cells`` and yield the record of each when it has ended, in any order; write nothing to the run folder.

        Before each cell call `context.started`. A cell that fails is a record too. When the iterator is closed, or
        Ctrl-C is raised in it, end what still runs. Raise `prunebench.PrunebenchError` for what the user can mend.
        """
