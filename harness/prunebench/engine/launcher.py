"""Starts a cell in a process of its own and waits for its end."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

TICK_S = 0.1


class LauncherDiedError(RuntimeError):
    """The process that starts cells has ended, which takes the running cell with it; ``said`` is its last output."""

    def __init__(self, code: int, said: str) -> None:
        last = said.splitlines()[-1] if said else "it said nothing"
        super().__init__(f"the process that starts cells has ended with {code}: {last}")
        self.said = said


class Launcher(Protocol):
    """One way of starting cells, one at a time."""

    def start(self) -> None:
        """Get ready in the background; calling it early is never needed, only quicker."""

    def run(self, argv: list[str], log: Path, tick: Callable[[], None], limit_s: float | None) -> int | None:
        """Run `prunebench.cell` with ``argv``, its output appended to ``log``, calling ``tick`` while it runs.

        Gives the exit code, negative for a signal; None where it was ended after ``limit_s`` seconds.
        """

    def close(self) -> None:
        """End whatever is still running."""


def launcher() -> Launcher:
    """The quick one where fork is safe, else a fresh interpreter a cell."""
    return ForkLauncher() if sys.platform == "linux" else SpawnLauncher()


class SpawnLauncher:
    """A fresh interpreter for every cell."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Nothing can be prepared."""

    def run(self, argv: list[str], log: Path, tick: Callable[[], None], limit_s: float | None) -> int | None:
        with log.open("ab") as file:
            self._process = process = subprocess.Popen(
                [sys.executable, "-m", "prunebench.cell", *argv],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        deadline = None if limit_s is None else time.monotonic() + limit_s
        try:
            while True:
                try:
                    return process.wait(TICK_S)
                except subprocess.TimeoutExpired:
                    tick()
                    if deadline is not None and time.monotonic() > deadline:
                        return None
        finally:
            end_session(process.pid)
            process.wait()
            self._process = None

    def close(self) -> None:
        if self._process is not None:
            end_session(self._process.pid)
            self._process.wait()


class ForkLauncher:
    """A zygote that has imported torch and transformers once forks every cell (`prunebench.cell.zygote`)."""

    def __init__(self) -> None:
        self._zygote: subprocess.Popen[bytes] | None = None
        self._greeted = False
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the zygote

    def run(self, argv: list[str], log: Path, tick: Callable[[], None], limit_s: float | None) -> int | None:
        zygote = self._ready(tick)
        assert zygote.stdin is not None
        zygote.stdin.write(json.dumps({"argv": argv, "log": str(log)}).encode() + b"\n")
        zygote.stdin.flush()
        pid: int = self._reply(zygote, tick, None)["pid"]  # type: ignore[index]
        try:
            end = self._reply(zygote, tick, limit_s)
            if end is not None:
                return end["exit"]
        finally:
            end_session(pid)
        self._reply(zygote, tick, None)
        return None

    def close(self) -> None:
        if self._zygote is not None:
            self._zygote.kill()
            self._zygote.wait()
            self._zygote = None
        self._complaints.close()

    def start(self) -> None:
        self._greeted = False
        self._zygote = subprocess.Popen(
            [sys.executable, "-m", "prunebench.cell.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            bufsize=0,
            start_new_session=True,
        )

    def _ready(self, tick: Callable[[], None]) -> subprocess.Popen[bytes]:
        if self._zygote is None or (self._greeted and self._zygote.poll() is not None):
            self.start()
        assert self._zygote is not None
        if not self._greeted:
            self._greeted = self._reply(self._zygote, tick, None) is not None
        return self._zygote

    def _reply(
        self, zygote: subprocess.Popen[bytes], tick: Callable[[], None], limit_s: float | None
    ) -> dict[str, int] | None:
        """The next line of the zygote; None where none came within ``limit_s``. Raises LauncherDiedError."""
        assert zygote.stdout is not None
        deadline = None if limit_s is None else time.monotonic() + limit_s
        while True:
            readable, _, _ = select.select([zygote.stdout], [], [], TICK_S)
            if readable:
                line = zygote.stdout.readline()
                if line:
                    reply: dict[str, int] = json.loads(line)
                    return reply
                zygote.wait()
                self._zygote = None
                self._complaints.seek(0)
                raise LauncherDiedError(
                    zygote.returncode, self._complaints.read()[-8000:].decode(errors="replace").strip()
                )
            tick()
            if deadline is not None and time.monotonic() > deadline:
                return None


def end_session(leader: int) -> None:
    """Kill a cell's process and the ones it forked, as far as they still are in its session."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
