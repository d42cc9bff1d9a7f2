"""How a run looks while it goes on.

In a terminal: one bar for all cells, and one for each running cell. Elsewhere: one line when a cell
starts, one when it ends, and one a minute in between.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column as TableColumn

from prunebench.app.time_left import RunningCell, TimeLeft, in_words, shape_in_words
from prunebench.cell.events import Event
from prunebench.engine.session import Watcher
from prunebench.experiment.cell import Cell
from prunebench.record.record import Record

REPORT_EVERY_S = 60.0
"""Without a terminal: seconds between two lines about cells that run."""


@contextmanager
def show(cells: Sequence[Cell]) -> Iterator[Watcher]:
    """Show the progress of ``cells`` while the context is open."""
    console = Console(highlight=False)
    if not console.is_terminal:
        # soft_wrap: a cell stays one line in a log, however narrow the console claims to be.
        console = Console(highlight=False, soft_wrap=True)
        lines = ProgressLines(console, list(cells))
        with _every(REPORT_EVERY_S, lines.report):
            yield lines
        return
    # The name and the state matter more than the bar.
    bars_width = min(30, console.width // 2 - 30)
    columns = (
        TextColumn("{task.description}", table_column=TableColumn(ratio=1, overflow="fold")),
        *([BarColumn(bar_width=bars_width)] if bars_width > 0 else []),
        TextColumn("{task.fields[state]}", table_column=TableColumn(overflow="fold")),
    )
    # transient: the bars vanish at the end, and the lines of finished cells stay.
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        bars = _Bars(console, list(cells), progress=progress)
        with _every(1.0, bars.report):
            yield bars


@contextmanager
def _every(seconds: float, call: Callable[[], None]) -> Iterator[None]:
    """Call ``call`` from a thread in this interval: a cell in a long phase tells nothing itself."""
    ended = threading.Event()

    def repeat() -> None:
        # A terminal that fails switches this off, and nothing else.
        with suppress(Exception, SystemExit):
            while not ended.wait(seconds):
                call()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@dataclass
class ProgressLines:
    """One line when a cell starts and when it ends, and from time to time one about the rest."""

    console: Console
    waiting: list[Cell]
    """Cells that have not started."""
    clock: Callable[[], float] = time.monotonic
    _count: int = field(default=0, init=False)
    _running: dict[str, RunningCell] = field(default_factory=dict, init=False)
    """By cell id."""
    _time_left: TimeLeft = field(default_factory=TimeLeft, init=False)
    # `report` runs in a thread of its own.
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __post_init__(self) -> None:
        self._cells = len(self.waiting)

    def started(self, cell: Cell) -> None:
        self._begin(cell)
        # Without markup=False, rich would read [1/8] as a style.
        self.console.print(f"[{self._count}/{self._cells}] {_name(cell)} ...", markup=False)

    def moved(self, cell: Cell, event: Event) -> None:
        with self._lock:
            if (running := self._running.get(cell.id)) is not None:
                running.moved(event)

    def finished(self, record: Record) -> None:
        with self._lock:
            # The number of its start: cells that run at the same time end in another order.
            one = self._running.pop(record.id)
            self._time_left.finished(record)
        spent = self.clock() - one.begun
        name = f"[{one.number}/{self._cells}] {_name(record.cell)}"
        self.console.print(f"{name}: {outcome(record)} ({spent:.1f} s)", markup=False)

    def report(self) -> None:
        """One line about the cells that run: phase, per cent, and the time that is left."""
        with self._lock:
            if not self._running:
                return
            parts = [_state(one, self._cells, self.clock()) for one in self._running.values()]
            left = self._left()
        end = f"; about {left} left for the whole run" if left else ""
        self.console.print(f"{'; '.join(parts)}{end}", markup=False)

    def _begin(self, cell: Cell) -> None:
        with self._lock:
            self._count += 1
            self._running[cell.id] = RunningCell(cell, self._count, self.clock())
            self.waiting = [one for one in self.waiting if one.id != cell.id]

    def _left(self) -> str | None:
        """The time that is left, in words; None as long as no cell has finished."""
        running = list(self._running.values())
        seconds = self._time_left.seconds(running, self.waiting, self.clock())
        return None if seconds is None else in_words(seconds)


def _state(one: RunningCell, cells: int, now: float) -> str:
    share = "" if one.share is None else f" {one.share:.0%}"
    return (
        f"[{one.number}/{cells}] {_name(one.cell)}: {one.doing}{share}, "
        f"after {in_words(now - one.begun)}"
    )


@dataclass(kw_only=True)
class _Bars(ProgressLines):
    """A bar for all cells with the time that is left, and one for each running cell."""

    progress: Progress
    _whole: TaskID | None = field(default=None, init=False)
    _parts: dict[str, TaskID] = field(default_factory=dict, init=False)

    def started(self, cell: Cell) -> None:
        self._begin(cell)
        if self._whole is None:
            self._whole = self.progress.add_task("cells", total=self._cells, state="")
        self._parts[cell.id] = self.progress.add_task(_name(cell), total=None, state="start")
        self.report()

    def moved(self, cell: Cell, event: Event) -> None:
        super().moved(cell, event)
        if (part := self._parts.get(cell.id)) is not None:
            # A total of 0 means that the phase does not count; None makes the bar pulse.
            self.progress.update(
                part,
                state=self._doing(cell, event),
                total=event.total or None,
                completed=event.done,
            )

    def _doing(self, cell: Cell, event: Event) -> str:
        running = self._running.get(cell.id)
        return event.phase if running is None else running.doing

    def finished(self, record: Record) -> None:
        super().finished(record)
        if (part := self._parts.pop(record.id, None)) is not None:
            self.progress.remove_task(part)
        if self._whole is not None:
            self.progress.advance(self._whole)

    def report(self) -> None:
        """The number of the newest cell and the time that is left, beside the bar of all."""
        with self._lock:
            left = self._left()
        if self._whole is not None:
            end = f", about {left} left" if left else ""
            self.progress.update(self._whole, state=f"{self._count} of {self._cells}{end}")


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
    words += _perplexities(record)
    if record.audit is not None:
        words += _removed(record)
    words += _speeds(record)
    return ", ".join(words)


def _perplexities(record: Record) -> list[str]:
    every = record.quality.perplexity if record.quality else []
    # Several need their texts; one is the only text of the suite.
    return [
        f"perplexity {_short(one.perplexity)}" + (f" ({one.corpus})" if len(every) > 1 else "")
        for one in every
    ]


def _removed(record: Record) -> list[str]:
    """Zeros and removed parameters: a method makes the one or the other, seldom both."""
    audit = record.audit
    if audit is None or record.cell.method.name == "dense":
        return []
    fewer = audit.parameters < audit.parameters_dense
    words = [] if fewer and audit.zeros <= audit.zeros_dense else [f"sparsity {audit.sparsity:.1%}"]
    if layers := len(audit.removed_layers):
        words.append(f"{layers} layer{'s' if layers > 1 else ''} removed")
    if fewer:
        words.append(f"{audit.removed_share:.1%} of the parameters removed")
    return words


def _speeds(record: Record) -> list[str]:
    words = []
    latencies = record.speed.latency if record.speed else []
    if any(latency.inter_token_s is None for latency in latencies):
        words.append("speed not measurable here")
    for latency in latencies:
        if latency.inter_token_s is None:
            continue
        ratio = latency.inter_token_speedup
        beside = "" if ratio is None else f" = {ratio.estimate:.2f}x dense"
        kernels = "" if latency.weights == "as stored" else f", {latency.weights}"
        words.append(
            f"{latency.inter_token_s.median * 1e3:.1f} ms/token{beside} "
            f"({shape_in_words(latency)}{kernels})"
        )
    return words
