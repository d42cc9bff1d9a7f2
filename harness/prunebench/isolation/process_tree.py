"""The children and descendants of a process, by Linux's /proc.

Imports the standard library only, because the memory sampler uses this and has to start in a tenth
of a second.
"""

from __future__ import annotations

import os


def linux_children(pid: int) -> list[int]:
    """Pids of the children of all threads of ``pid``; empty if the kernel does not list them."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - pathlib slows the start
            with open(f"/proc/{pid}/task/{thread}/children", "rb", buffering=0) as file:  # noqa: PTH123
                found.extend(map(int, file.read().split()))
    except OSError:
        pass
    return found


def linux_tree(root: int) -> set[int]:
    """Pids of ``root`` and all its descendants, without this process."""
    found, waiting = {root}, linux_children(root)
    while waiting:
        pid = waiting.pop()
        if pid != os.getpid():
            found.add(pid)
            waiting.extend(linux_children(pid))
    return found
