"""Processes of a cell: none outlives it, none outlives the run.

Three nets, since each has a hole. A cell leads a session, so that its process group can be killed. A subreaper
(prctl(2), Linux) adopts what left that group by setsid(2) and lost its parent, so that it can be found among its
children. And everything that comes from one run carries a mark in its environment, by which it is found when the
adopting process itself was killed. What clears its environment, leaves the session and kills the adopter gets away.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from prunebench.isolation.process_tree import linux_children

MARK = "PRUNEBENCH_RUN_MARK"
"""The environment variable that names the run a process comes from."""

HELPERS = ("resource_tracker", "compile_worker", "forkserver")
"""In the command lines of processes that Python and torch keep for themselves; they end with the one that they serve."""

_SET_PDEATHSIG = 1
_SET_CHILD_SUBREAPER = 36
_WITHIN_S = 5.0


def die_with_parent(how: signal.Signals = signal.SIGKILL) -> None:
    """Ask the kernel to send ``how`` to this process when its parent ends. Linux only; elsewhere nothing happens."""
    _prctl(_SET_PDEATHSIG, int(how))


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends. Linux only; elsewhere nothing happens."""
    _prctl(_SET_CHILD_SUBREAPER, 1)


def be_killed_first() -> None:
    """Tell the kernel to end this process rather than the run where memory runs out."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")


def children() -> set[int]:
    """Pids of this process's children, adopted ones too, by /proc; empty where there is none."""
    return set(linux_children(os.getpid()))


def end_children(grace_s: float, spare: set[int] | None = None) -> list[str]:
    """End all children but ``spare``, and theirs, after ``grace_s`` seconds in which they may end by themselves.

    Gives the command lines of those that had to be ended, helpers of Python and torch left out.
    """
    spared = spare or set()
    ended: dict[int, str] = {}
    begun = time.monotonic()
    while time.monotonic() - begun < grace_s + _WITHIN_S:
        _reap(spared)
        left = children() - spared
        if not left:
            break
        if time.monotonic() - begun >= grace_s:
            for pid in left:  # what they leave behind is adopted, and met in the next turn
                ended.setdefault(pid, command_line(pid))
                kill(pid)
        time.sleep(0.005)
    return [line for line in ended.values() if line and not any(name in line for name in HELPERS)]


def end_marked(mark: str, *, kin: bool = False) -> int:
    """Kill every process that carries ``mark``, but this one; gives their number.

    With ``kin`` also those whose mark is this one and a number, 'MARK-2': what ran side by side in one run.
    """
    import psutil

    found: set[int] = set()
    begun = time.monotonic()
    while time.monotonic() - begun < _WITHIN_S:
        living = [
            process
            for process in psutil.process_iter()
            if process.pid != os.getpid() and _has(process, mark, kin)
        ]
        if not living:
            break
        for process in living:
            found.add(process.pid)
            kill(process.pid)
        time.sleep(0.01)
    return len(found)


def end_session(leader: int) -> None:
    """Kill a cell's process and the ones it forked, as far as they still are in its session."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def kill(pid: int) -> None:
    """SIGKILL, where the process is still there."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def command_line(pid: int) -> str:
    """What a process runs, shortened; empty where it is gone or has ended."""
    try:
        text = (
            Path(f"/proc/{pid}/cmdline")
            .read_bytes()
            .replace(b"\0", b" ")
            .decode(errors="replace")
            .strip()
        )
    except OSError:
        return ""
    return text if len(text) <= 80 else f"{text[:77]}..."


def _has(process: object, mark: str, kin: bool) -> bool:
    import psutil

    assert isinstance(process, psutil.Process)
    try:
        found = process.environ().get(MARK, "")
        ours = found == mark or (kin and found.startswith(f"{mark}-"))
        return ours and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):
        return False


def _reap(spared: set[int]) -> None:
    """Take the exit codes of adopted children that have ended."""
    for pid in children() - spared:
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
