"""How much memory a process uses, read from outside, and whether the kernel killed for lack of it.

Limits of the kernel do not help: RLIMIT_AS and RLIMIT_DATA count reserved memory, and CUDA, thread
stacks and mapped checkpoints reserve many times what they use. So the resident set is watched.
"""

from __future__ import annotations

import os
from pathlib import Path

from prunebench.isolation.process_tree import linux_tree


def used_bytes(pid: int, limit: int) -> int | None:
    """Resident set of a process and its descendants; None if it cannot be read.

    The sum counts a shared page once for every process. Only if it exceeds ``limit`` are the
    descendants counted by their proportional share, which takes the kernel longer to compute.
    """
    own = _resident(pid)
    others = linux_tree(pid) - {pid}
    if own is None or not others:
        return own
    total = own + sum(_resident(other) or 0 for other in others)
    return total if total <= limit else own + sum(_proportional(other) or 0 for other in others)


def kernel_kills() -> int | None:
    """How many processes the kernel has killed for lack of memory since boot; None if unknown."""
    try:
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    except (OSError, ValueError):
        pass
    return None


def _resident(pid: int) -> int | None:
    try:
        # The second field of statm is the resident set in pages.
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return None


def _proportional(pid: int) -> int | None:
    """The resident set with each shared page divided by the number of processes that share it."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    # smaps_rollup needs Linux 4.14 and permission to trace the process.
    return _resident(pid)
