"""How a run looks while it goes on.

In a terminal: one bar for all cells, and one for each running cell. Elsewhere: one line when a cell
starts, and one when it ends.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from prunebench.cell.events import Event
from prunebench.engine.session import Watcher
from prunebench.experiment.cell import Cell
from prunebench.record.record import Record


@contextmanager
def show(cells: int) -> Iterator[Watcher]:
    """Show the progress of ``cells`` cells while the context is open."""
    # soft_wrap: a cell stays one line in a log, however narrow the console claims to be.
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        yield _Lines(console, cells)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[state]}"),
    )
    # transient: the bars vanish at the end, and the lines of finished cells stay.
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        yield _Bars(console, cells, progress=progress)


@dataclass
class _Lines:
    console: Console
    cells: int
    number: int = 0
    _running: dict[str, tuple[int, float]] = field(default_factory=dict, init=False)
    """By cell id: its number, and when it began."""

    def started(self, cell: Cell) -> None:
        self.number += 1
        self._running[cell.id] = self.number, time.monotonic()
        # Without markup=False, rich would read [1/8] as a style.
        self.console.print(f"[{self.number}/{self.cells}] {_name(cell)} ...", markup=False)

    def moved(self, cell: Cell, event: Event) -> None:
        """Phases are shown in terminals only."""

    def finished(self, record: Record) -> None:
        # The number of its start: cells that run at the same time end in another order.
        number, begun = self._running.pop(record.id)
        spent = time.monotonic() - begun
        line = f"[{number}/{self.cells}] {_name(record.cell)}: {outcome(record)} ({spent:.1f} s)"
        self.console.print(line, markup=False)


@dataclass(kw_only=True)
class _Bars(_Lines):
    progress: Progress
    _whole: TaskID | None = field(default=None, init=False)
    _parts: dict[str, TaskID] = field(default_factory=dict, init=False)

    def started(self, cell: Cell) -> None:
        self.number += 1
        self._running[cell.id] = self.number, time.monotonic()
        if self._whole is None:
            self._whole = self.progress.add_task("cells", total=self.cells, state="")
        self.progress.update(self._whole, state=f"{self.number} of {self.cells}")
        self._parts[cell.id] = self.progress.add_task(_name(cell), total=None, state="start")

    def moved(self, cell: Cell, event: Event) -> None:
        if (part := self._parts.get(cell.id)) is not None:
            # A total of 0 means that the phase does not count; None makes the bar pulse.
            self.progress.update(
                part, state=event.phase, total=event.total or None, completed=event.done
            )

    def finished(self, record: Record) -> None:
        super().finished(record)
        if (part := self._parts.pop(record.id, None)) is not None:
            self.progress.remove_task(part)
        if self._whole is not None:
            self.progress.advance(self._whole)


def _name(cell: Cell) -> str:
    return f"{cell.model.name} {cell.label}" + (f" seed={cell.seed}" if cell.seed else "")


def _short(perplexity: float) -> str:
    return f"{perplexity:.2f}" if perplexity < 1e5 else f"{perplexity:.2g}"


def outcome(record: Record) -> str:
    """One record in a few words."""
    if record.error is not None:
        message = (record.error.message.splitlines() or [""])[0]
        failed = f"{record.status} while in '{record.error.phase}'"
        if record.error.hint:  # an error of ours: its message says more than its class
            return f"{failed}: {message} (fix: {record.error.hint})"
        return f"{failed}: {record.error.type}: {message}"
    words: list[str] = [
        record.status,
        *([f"flagged ({len(record.flags)})"] if record.flags else []),
    ]
    words += (
        [f"perplexity {_short(result.perplexity)}" for result in record.quality.perplexity]
        if record.quality
        else []
    )
    if record.audit is not None:
        words.append(f"sparsity {record.audit.sparsity:.1%}")
        if record.audit.removed_layers:
            words.append(f"{len(record.audit.removed_layers)} layers removed")
    for latency in record.speed.latency if record.speed else []:
        if latency.inter_token_s is None:
            words.append("speed not measurable here")
            continue
        words.append(f"{latency.inter_token_s.median * 1e3:.1f} ms/token")
        if latency.inter_token_speedup is not None:
            words.append(f"{latency.inter_token_speedup.estimate:.2f}x dense")
    return ", ".join(words)
