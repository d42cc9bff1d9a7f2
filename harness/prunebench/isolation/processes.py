"""End every process of a cell: none outlives the cell, none outlives the run.

Three mechanisms, because each has a gap:

1. A cell leads a session, so its whole process group can be killed at once. A process that calls
   setsid(2) leaves the group.
2. A subreaper (prctl(2), Linux) becomes the parent of processes whose own parent ended, so it
   finds those that left the group among its children. It may itself be killed.
3. Every process of a run inherits a mark in its environment, so what the killed subreaper would
   have adopted is still found.

A process that clears its environment, leaves the session and kills the subreaper escapes.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from prunebench.isolation.process_tree import linux_children

if TYPE_CHECKING:
    import psutil

MARK = "PRUNEBENCH_RUN_MARK"
"""The environment variable with the mark of the run that a process belongs to."""

# Parts of the command lines of processes that Python and torch start for themselves; they end
# together with the process that they serve.
HELPERS = ("resource_tracker", "compile_worker", "forkserver")

# From <linux/prctl.h>.
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# Give up after this long: a process in uninterruptible sleep cannot be killed.
_GIVE_UP_S = 5.0


def die_with_parent(how: signal.Signals = signal.SIGKILL) -> None:
    """Ask the kernel to send ``how`` to this process when its parent ends. Linux only."""
    _prctl(_PR_SET_PDEATHSIG, int(how))


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends. Linux only."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def be_killed_first() -> None:
    """Let the kernel kill this process rather than the run if memory runs out."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")


def children() -> set[int]:
    """Pids of this process's children, including adopted ones; empty without /proc."""
    return set(linux_children(os.getpid()))


def end_children(grace_s: float, spare: set[int] | None = None) -> list[str]:
    """End all descendants except ``spare``; they get ``grace_s`` seconds to end by themselves.

    Returns the command lines of those that had to be killed, without helpers of Python and torch.
    """
    spared = spare or set()
    ended: dict[int, str] = {}
    begun = time.monotonic()
    while time.monotonic() - begun < grace_s + _GIVE_UP_S:
        _reap(spared)
        left = children() - spared
        if not left:
            break
        if time.monotonic() - begun >= grace_s:
            # Only children are killed here: this process adopts their children, and the next turn
            # of the loop finds them.
            for pid in left:
                ended.setdefault(pid, command_line(pid))
                kill(pid)
        time.sleep(0.005)
    return [line for line in ended.values() if line and not any(name in line for name in HELPERS)]


def end_marked(mark: str, *, kin: bool = False) -> int:
    """Kill every process that carries ``mark``, except this one; returns their number.

    ``kin`` includes marks with a number added, such as 'MARK-2': those of cells that ran side by
    side in one run.
    """
    import psutil

    found: set[int] = set()
    begun = time.monotonic()
    # Repeats because a process may fork between being listed and being killed.
    while time.monotonic() - begun < _GIVE_UP_S:
        living = [
            process
            for process in psutil.process_iter()
            if process.pid != os.getpid() and _has_mark(process, mark, kin)
        ]
        if not living:
            break
        for process in living:
            found.add(process.pid)
            kill(process.pid)
        time.sleep(0.01)
    return len(found)


def end_session(leader: int) -> None:
    """Kill a cell's process and all processes in its process group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def kill(pid: int) -> None:
    """Send SIGKILL; does nothing if the process is gone."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def command_line(pid: int) -> str:
    """A process's command line, shortened to 80 characters; empty if the process has ended."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    text = raw.replace(b"\0", b" ").decode(errors="replace").strip()
    return text if len(text) <= 80 else f"{text[:77]}..."


def _has_mark(process: psutil.Process, mark: str, kin: bool) -> bool:
    import psutil

    try:
        found = process.environ().get(MARK, "")
        ours = found == mark or (kin and found.startswith(f"{mark}-"))
        return ours and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):
        return False


def _reap(spared: set[int]) -> None:
    """Collect the exit codes of adopted children that have ended, so they do not stay zombies."""
    for pid in children() - spared:
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
