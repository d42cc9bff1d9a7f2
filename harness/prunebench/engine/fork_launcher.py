"""Start cells through a fork server, `prunebench.cell.fork_server`."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from prunebench.engine.job import Job, LauncherDiedError, Limits, ProcessExit
from prunebench.engine.limits import TICK_S, LimitWatch
from prunebench.isolation.interpreter import module_command
from prunebench.isolation.processes import MARK, end_marked, end_session, kill

# A fork server that does not answer within this time after its cell was killed is stuck.
GRACE_S = 10.0
LOG_BYTES = 8000

Server = subprocess.Popen[bytes]


class ForkLauncher:
    """Forks every cell from a process that imported torch and transformers once."""

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self._server: Server | None = None
        self._ready = False
        """Whether the server has finished its imports."""
        # Open as long as this object: the server writes to it, and it is read only if that dies.
        self._output = tempfile.TemporaryFile()  # noqa: SIM115

    def start(self) -> None:
        self._ready = False
        self._server = subprocess.Popen(
            module_command("prunebench.cell.fork_server"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._output,
            # `select` on the pipe would not see what a buffer already holds.
            bufsize=0,
            # Ctrl-C in a terminal must not reach it: the run decides what that means.
            start_new_session=True,
            env={**os.environ, MARK: self.mark},
        )

    def run(self, job: Job, tick: Callable[[], None]) -> ProcessExit:
        server = self._ready_server(tick)
        assert server.stdin is not None
        request = {
            "argv": job.argv,
            "log": str(job.log),
            "environment": dict(job.environment),
            "imports": job.imports,
        }
        try:
            server.stdin.write(json.dumps(request).encode() + b"\n")
            server.stdin.flush()
        except BrokenPipeError:
            raise self._died(server) from None
        started = self._reply(server, tick)
        assert started is not None
        pid: int = started["pid"]
        watch = LimitWatch(pid, job.limits, job.waited_s)
        try:
            end = self._reply(server, tick, watch)
        except BaseException:
            end_session(pid)
            raise
        if end is None:
            end_session(pid)
            # The cell itself may have left its session.
            kill(pid)
            patience = LimitWatch(server.pid, Limits(time_s=GRACE_S), lambda: 0.0)
            end = self._reply(server, tick, patience)
        if end is None:
            # The cell stopped its server (SIGSTOP): end both.
            self._end(server)
            return ProcessExit(-signal.SIGKILL, watch.exceeded, watch.peak_bytes)
        # The server's figure is of the cell alone; a memory limit counts its children too.
        peak = max(end["peak_rss_bytes"], watch.peak_bytes or 0)
        return ProcessExit(end["exit"], watch.exceeded, peak, tuple(end["left"]))

    def another(self, number: int) -> ForkLauncher:
        return ForkLauncher(f"{self.mark}-{number}")

    def close(self) -> None:
        if self._server is not None:
            self._end(self._server)
        self._output.close()

    def _ready_server(self, tick: Callable[[], None]) -> Server:
        """A server that accepts a request; started if there is none or if it died in between."""
        if self._server is not None and self._ready and self._server.poll() is not None:
            self._forget(self._server)
        if self._server is None:
            self.start()
        assert self._server is not None
        if not self._ready:
            self._ready = self._reply(self._server, tick) is not None
        return self._server

    def _reply(
        self, server: Server, tick: Callable[[], None], watch: LimitWatch | None = None
    ) -> dict[str, Any] | None:
        """The server's next line; None if ``watch`` sees a limit exceeded before it comes.

        Raises LauncherDiedError.
        """
        assert server.stdout is not None
        while True:
            readable, _, _ = select.select(
                [server.stdout], [], [], TICK_S if watch is None else watch.tick_s
            )
            if readable:
                if line := server.stdout.readline():
                    reply: dict[str, Any] = json.loads(line)
                    return reply
                raise self._died(server)
            tick()
            if watch is not None and watch.check():
                return None

    def _end(self, server: Server) -> None:
        """Ask the server to end itself and its cell; kill it if it is stuck or still importing."""
        if self._ready:
            server.terminate()
            with suppress(subprocess.TimeoutExpired):
                server.wait(GRACE_S / 2)
        server.kill()
        self._forget(server)
        # A server that was killed while it imported has started nothing.
        if self._ready:
            end_marked(self.mark)

    def _forget(self, server: Server) -> None:
        """Reap the server, which has ended or is about to, and close its pipes."""
        server.wait()
        for pipe in (server.stdin, server.stdout):
            if pipe is not None:
                pipe.close()
        self._server = None

    def _died(self, server: Server) -> LauncherDiedError:
        self._forget(server)
        end_marked(self.mark)
        self._output.seek(0)
        output = self._output.read()[-LOG_BYTES:].decode(errors="replace").strip()
        return LauncherDiedError(server.returncode, output)
