"""Starting a cell in a process of its own: what a launcher gets, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol


class LauncherDiedError(RuntimeError):
    """The process that forks cells has ended, and the running cell with it."""

    def __init__(self, code: int, output: str) -> None:
        last = output.splitlines()[-1] if output else "it wrote nothing"
        super().__init__(f"the process that starts cells has ended with {code}: {last}")
        self.output = output


@dataclass(frozen=True)
class Limits:
    """How much a cell may take; None is no limit."""

    time_s: float | None = None
    memory_bytes: int | None = None


def _never_waits() -> float:
    return 0.0


@dataclass(frozen=True)
class Job:
    """A cell to start."""

    argv: list[str]
    """The arguments of `python -m prunebench.cell`."""
    log: Path
    """The file that its output is appended to."""
    limits: Limits = Limits()
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to this process's environment."""
    waited_s: Callable[[], float] = _never_waits
    """How long it has waited for other cells; its time limit does not count that."""
    imports: tuple[str, ...] = ()
    """Modules that it will need; a fork server imports them once for all cells."""


@dataclass(frozen=True)
class ProcessExit:
    """How a cell's process ended."""

    code: int
    """Its exit code, negative for a signal."""
    exceeded: Literal["time", "memory"] | None = None
    """The limit that it was killed for."""
    peak_rss_bytes: int | None = None
    left: tuple[str, ...] = ()
    """Command lines of processes that it left running; they were ended."""


class Launcher(Protocol):
    """One way to start cells, one at a time."""

    @property
    def mark(self) -> str:
        """What its processes carry in their environment, see `prunebench.isolation.processes`."""

    def start(self) -> None:
        """Prepare in the background. Calling this is never necessary; it only saves time."""

    def run(self, job: Job, tick: Callable[[], None]) -> ProcessExit:
        """Run a cell until it ends, calling ``tick`` meanwhile. Raises LauncherDiedError."""

    def another(self, number: int) -> Launcher:
        """A launcher of the same kind, for cells that run beside those of this one.

        Its mark is this one's with ``number`` added, so that the run that follows a killed one can
        find the processes of both.
        """

    def close(self) -> None:
        """End whatever still runs."""
