"""The base class of engines: an engine decides where the cells of a run execute.

Nothing here imports torch, so that `prunebench plugins` stays fast.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from prunebench.plugin.api import options

if TYPE_CHECKING:
    from prunebench.experiment.cell import Cell
    from prunebench.record.record import Record, Status

BUILT_IN = ("local", "ray")
"""Names that no plugin can use."""


class EngineContext(ABC):
    """What a run offers to its engine.

    Call all of it from the thread in which `Engine.run` yields its records.
    """

    # Observers and the progress display are called from here and take no locks, hence one thread.

    folder: Path
    """The run folder. ``specs/ID.json`` is what `python -m prunebench.cell` takes; the cell's log
    goes to ``cells/ID.log``."""

    @abstractmethod
    def started(self, cell: Cell) -> None:
        """Tell the progress display and the observing plugins that ``cell`` starts now."""

    @abstractmethod
    def moved(self, cell: Cell, phase: str, done: int = 0, total: int = 0, said: str = "") -> None:
        """Tell the progress display how far ``cell`` is: ``done`` of ``total`` parts of ``phase``.

        0 of 0 means that the number of parts is not known. ``said``: how it goes, in a few words.
        """

    @abstractmethod
    def run_cell(self, cell: Cell) -> Record:
        """Run ``cell`` in a process on this machine, within its limits, and return its record."""

    @abstractmethod
    def record(self, cell: Cell, text: str | bytes) -> Record:
        """Read the record that `python -m prunebench.cell` wrote on another machine.

        Raises PrunebenchError if ``text`` is not a record of ``cell``.
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
        """Make a failed record for a cell that wrote none; the end of the cell's log is included.

        ``phase`` is the last phase that was seen; ``kind`` names the cause in two or three words,
        e.g. "lost node"; ``message`` and ``hint`` tell the user what happened and what to do.
        """


class Engine(ABC):
    """Where cells run: subclass it, and return the class from `prunebench_register_engine`.

    A user selects it with `prunebench run --engine NAME --engine-option KEY=VALUE`. The instance
    lives in the process of the run, not in those of the cells.
    """

    name: ClassVar[str]

    class Options(options.Options):
        """The engine's options; replace it with your own subclass of `prunebench.Options`.

        Their values come from the command line as text.
        """

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def run(self, cells: Sequence[Cell], context: EngineContext) -> Iterator[Record]:
        """Run ``cells`` and yield the record of each one when it ends, in any order.

        Call `context.started` before each cell. A cell that fails still has a record. Do not write
        to the run folder: the run stores what is yielded. If the iterator is closed, or Ctrl-C is
        raised in it, end all cells that still run. Raise `prunebench.PrunebenchError` for problems
        that the user can fix.
        """
