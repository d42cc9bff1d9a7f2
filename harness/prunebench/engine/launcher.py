"""Starts a cell in a process of its own, holds it to its limits, and waits for its end."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from prunebench.engine.memory_limit import used_bytes
from prunebench.isolation.processes import MARK, end_marked, end_session, kill

TICK_S = 0.1
QUICK_TICK_S = 0.02
"""Where memory is limited: a process can fill gigabytes in a tenth of a second."""
GRACE_S = 10.0
"""The zygote answers so long after its cell was killed, or it is taken for stuck."""


class LauncherDiedError(RuntimeError):
    """The process that starts cells has ended, which takes the running cell with it; ``said`` is its last output."""

    def __init__(self, code: int, said: str) -> None:
        last = said.splitlines()[-1] if said else "it said nothing"
        super().__init__(f"the process that starts cells has ended with {code}: {last}")
        self.said = said


@dataclass(frozen=True)
class Limits:
    """What a cell may take; None is no limit."""

    time_s: float | None = None
    memory_bytes: int | None = None


def _not_at_all() -> float:
    """A cell that never waits for others."""
    return 0.0


@dataclass(frozen=True)
class Job:
    """A cell to be started: the arguments of `prunebench.cell`, the file its output is appended to, its surroundings."""

    argv: list[str]
    log: Path
    limits: Limits = Limits()
    environment: Mapping[str, str] = field(default_factory=dict)
    waited_s: Callable[[], float] = _not_at_all
    """How long it has waited for others by now, which its time limit does not count."""
    imports: tuple[str, ...] = ()
    """Modules that it will want: imported once for all cells where these are forked."""


@dataclass(frozen=True)
class ProcessExit:
    """How a cell's process ended."""

    code: int
    """Its exit code, negative for a signal."""
    cut: Literal["time", "memory"] | None = None
    """The limit for which it was killed."""
    peak_rss_bytes: int | None = None
    left: tuple[str, ...] = ()
    """Command lines of processes that it left running; they were ended."""


class Launcher(Protocol):
    """One way of starting cells, one at a time."""

    @property
    def mark(self) -> str:
        """What all processes that it starts carry in their environment, see `prunebench.isolation.processes`."""

    def start(self) -> None:
        """Get ready in the background; calling it early is never needed, only quicker."""

    def run(self, job: Job, tick: Callable[[], None]) -> ProcessExit:
        """Run a cell to its end, calling ``tick`` while it runs. Raises LauncherDiedError."""

    def another(self, number: int) -> Launcher:
        """One of the same kind for cells that run beside its own; a killed run's successor finds what both left."""

    def close(self) -> None:
        """End whatever is still running."""


def launcher(mark: str | None = None) -> Launcher:
    """The quick one where fork is safe, else a fresh interpreter a cell."""
    return ForkLauncher(mark) if sys.platform == "linux" else SpawnLauncher(mark)


class SpawnLauncher:
    """A fresh interpreter for every cell."""

    def __init__(self, mark: str | None = None) -> None:
        self.mark = mark or uuid.uuid4().hex
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Nothing can be prepared."""

    def run(self, job: Job, tick: Callable[[], None]) -> ProcessExit:
        with job.log.open("ab") as file:
            self._process = process = subprocess.Popen(
                [sys.executable, "-m", "prunebench.cell", *job.argv],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                env={**os.environ, **job.environment, MARK: self.mark},
            )
        guard = _Guard(process.pid, job.limits, job.waited_s)
        cut: Literal["time", "memory"] | None = None
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(guard.tick_s)
                    break
                tick()
                if cut := guard.exceeded():
                    break
        finally:
            end_session(process.pid)
            code = process.wait()
            self._process = None
            end_marked(self.mark)
        return ProcessExit(code, cut, guard.peak_bytes)

    def another(self, number: int) -> SpawnLauncher:
        return SpawnLauncher(f"{self.mark}-{number}")

    def close(self) -> None:
        if self._process is not None:
            end_session(self._process.pid)
            self._process.wait()
        end_marked(self.mark)


class ForkLauncher:
    """A zygote that has imported torch and transformers once forks every cell (`prunebench.cell.fork_server`)."""

    def __init__(self, mark: str | None = None) -> None:
        self.mark = mark or uuid.uuid4().hex
        self._zygote: subprocess.Popen[bytes] | None = None
        self._greeted = False
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the zygote

    def run(self, job: Job, tick: Callable[[], None]) -> ProcessExit:
        zygote = self._ready(tick)
        assert zygote.stdin is not None
        request = {
            "argv": job.argv,
            "log": str(job.log),
            "environment": dict(job.environment),
            "imports": job.imports,
        }
        try:
            zygote.stdin.write(json.dumps(request).encode() + b"\n")
            zygote.stdin.flush()
        except BrokenPipeError:
            raise self._died(zygote) from None
        started = self._reply(zygote, tick)
        assert started is not None
        pid: int = started["pid"]
        guard = _Guard(pid, job.limits, job.waited_s)
        try:
            end = self._reply(zygote, tick, guard)
        except BaseException:
            end_session(pid)
            raise
        cut = guard.cut
        if end is None:
            end_session(pid)
            kill(pid)  # it may have left its session
            deadline = _Guard(zygote.pid, Limits(time_s=GRACE_S))
            end = self._reply(zygote, tick, deadline)
        if end is None:  # the cell stopped its zygote
            self._end_zygote(zygote)
            return ProcessExit(-signal.SIGKILL, cut, guard.peak_bytes)
        return ProcessExit(end["exit"], cut, end["peak_rss_bytes"], tuple(end["left"]))

    def another(self, number: int) -> ForkLauncher:
        return ForkLauncher(f"{self.mark}-{number}")

    def close(self) -> None:
        if self._zygote is not None:
            self._end_zygote(self._zygote)
        self._complaints.close()

    def start(self) -> None:
        self._greeted = False
        self._zygote = subprocess.Popen(
            [sys.executable, "-m", "prunebench.cell.fork_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            bufsize=0,
            start_new_session=True,
            env={**os.environ, MARK: self.mark},
        )

    def _end_zygote(self, zygote: subprocess.Popen[bytes]) -> None:
        """Ask it to leave and to take everything along; one that has not begun yet, or is stuck, is killed."""
        if self._greeted:
            zygote.terminate()
            with suppress(subprocess.TimeoutExpired):
                zygote.wait(GRACE_S / 2)
        zygote.kill()
        self._buried(zygote)
        if self._greeted:
            end_marked(self.mark)

    def _ready(self, tick: Callable[[], None]) -> subprocess.Popen[bytes]:
        if self._zygote is not None and self._greeted and self._zygote.poll() is not None:
            self._buried(self._zygote)
        if self._zygote is None:
            self.start()
        assert self._zygote is not None
        if not self._greeted:
            self._greeted = self._reply(self._zygote, tick) is not None
        return self._zygote

    def _reply(
        self, zygote: subprocess.Popen[bytes], tick: Callable[[], None], guard: _Guard | None = None
    ) -> dict[str, Any] | None:
        """The next line of the zygote; None where ``guard`` found a limit exceeded. Raises LauncherDiedError."""
        assert zygote.stdout is not None
        while True:
            readable, _, _ = select.select(
                [zygote.stdout], [], [], TICK_S if guard is None else guard.tick_s
            )
            if readable:
                line = zygote.stdout.readline()
                if line:
                    reply: dict[str, Any] = json.loads(line)
                    return reply
                raise self._died(zygote)
            tick()
            if guard is not None and guard.exceeded():
                return None

    def _buried(self, zygote: subprocess.Popen[bytes]) -> None:
        """It has ended, or is about to: nothing of it stays."""
        zygote.wait()
        for pipe in (zygote.stdin, zygote.stdout):
            if pipe is not None:
                pipe.close()
        self._zygote = None

    def _died(self, zygote: subprocess.Popen[bytes]) -> LauncherDiedError:
        self._buried(zygote)
        end_marked(self.mark)
        self._complaints.seek(0)
        said = self._complaints.read()[-8000:].decode(errors="replace").strip()
        return LauncherDiedError(zygote.returncode, said)


class _Guard:
    """Watches one process's limits."""

    def __init__(
        self, pid: int, limits: Limits, waited_s: Callable[[], float] = _not_at_all
    ) -> None:
        self._pid = pid
        self._limits = limits
        self._waited_s = waited_s
        self._deadline = None if limits.time_s is None else time.monotonic() + limits.time_s
        self.tick_s = TICK_S if limits.memory_bytes is None else QUICK_TICK_S
        self.peak_bytes: int | None = None
        self.cut: Literal["time", "memory"] | None = None

    def exceeded(self) -> Literal["time", "memory"] | None:
        """The limit that the process is over, if it is over one."""
        if self._limits.memory_bytes is not None:
            used = used_bytes(self._pid, self._limits.memory_bytes)
            if used is not None:
                self.peak_bytes = max(used, self.peak_bytes or 0)
                if used > self._limits.memory_bytes:
                    self.cut = "memory"
        if self._deadline is not None and time.monotonic() > self._deadline + self._waited_s():
            self.cut = self.cut or "time"
        return self.cut
