"""Start each cell in a fresh interpreter, or choose the fork server if forking is safe."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from contextlib import suppress

from prunebench.engine.fork_launcher import ForkLauncher
from prunebench.engine.job import Job, Launcher, ProcessExit
from prunebench.engine.limits import LimitWatch
from prunebench.isolation.interpreter import module_command
from prunebench.isolation.processes import MARK, end_marked, end_session


def launcher(mark: str | None = None) -> Launcher:
    """The fork server on Linux, otherwise a fresh interpreter per cell.

    ``mark`` identifies the processes of the run; a new one is made if there is none.
    """
    mark = mark or uuid.uuid4().hex
    return ForkLauncher(mark) if sys.platform == "linux" else SpawnLauncher(mark)


class SpawnLauncher:
    """Starts a fresh interpreter for every cell."""

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Do nothing: an interpreter cannot be prepared."""

    def run(self, job: Job, tick: Callable[[], None]) -> ProcessExit:
        with job.log.open("ab") as file:
            self._process = process = subprocess.Popen(
                module_command("prunebench.cell", *job.argv),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                # Its own process group, which `end_session` kills as a whole.
                start_new_session=True,
                env={**os.environ, **job.environment, MARK: self.mark},
            )
        watch = LimitWatch(process.pid, job.limits, job.waited_s)
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(watch.tick_s)
                    break
                tick()
                if watch.check():
                    break
        finally:
            end_session(process.pid)
            code = process.wait()
            self._process = None
            end_marked(self.mark)
        return ProcessExit(code, watch.exceeded, watch.peak_bytes)

    def another(self, number: int) -> SpawnLauncher:
        return SpawnLauncher(f"{self.mark}-{number}")

    def close(self) -> None:
        if self._process is not None:
            end_session(self._process.pid)
            self._process.wait()
        end_marked(self.mark)
