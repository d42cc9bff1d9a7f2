"""How much memory a cell holds, as seen from outside, and whether the kernel killed for want of it.

RLIMIT_AS and RLIMIT_DATA count what is reserved: CUDA, thread stacks and mapped checkpoints reserve many times what
they use. So the resident set is watched, and the process killed where it is over the limit.
"""

from __future__ import annotations

import os
from pathlib import Path

from prunebench.isolation.process_tree import linux_tree


def used_bytes(pid: int, limit: int) -> int | None:
    """Resident set of a process and its descendants; None where it cannot be read.

    The sum counts pages that several share more than once. Where it is above ``limit`` the descendants are counted
    by their proportional share instead, which takes the kernel longer to say.
    """
    own = _resident(pid)
    others = linux_tree(pid) - {pid}
    if own is None or not others:
        return own
    total = own + sum(_resident(other) or 0 for other in others)
    return total if total <= limit else own + sum(_proportional(other) or 0 for other in others)


def kernel_kills() -> int | None:
    """How often the kernel has killed a process because memory ran out, since this machine started; None if unknown."""
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
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return None


def _proportional(pid: int) -> int | None:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return _resident(pid)
