"""Undo what a plugin changes in its process besides the model, and flag it.

Measuring has to begin in the state that the harness set up, whatever a method did to dtypes,
threads, TF32, the environment or signals. What cannot be undone is only flagged.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch.nn.modules import module as torch_module

from prunebench.isolation.flags import Flags
from prunebench.isolation.global_settings import global_settings
from prunebench.isolation.processes import HELPERS, children, command_line, end_children

# A thread or process that is about to end may take this long.
GRACE_S = 0.2


@contextmanager
def guarded(who: str, flags: Flags) -> Iterator[None]:
    """Run a plugin's code inside; afterwards, also after an exception, its side effects are undone.

    ``who`` is 'the method', for example; each side effect becomes a sentence in ``flags``. Threads
    that still run are only named, because Python cannot end them; processes are ended.
    """
    settings = global_settings()
    before = [setting.value() for setting in settings]
    environment, path = dict(os.environ), list(sys.path)
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    hooks = [dict(registry) for registry in _global_hooks()]
    threads, processes = set(threading.enumerate()), children()
    folder = os.getcwd()  # noqa: PTH109
    try:
        yield
    finally:
        for setting, old in zip(settings, before, strict=True):
            if (new := setting.value()) != old:
                flags.add(
                    who,
                    f"left {setting.name} at {_shown(new)}, it was {_shown(old)}; "
                    f"{setting.restore(old)}",
                )
        _restore_environment(environment, who, flags)
        if sys.path != path:
            flags.add(who, "changed sys.path; restored")
            sys.path[:] = path
        _restore_signals(handlers, who, flags)
        if _folder() != folder:
            flags.add(who, "changed the working directory; restored")
            os.chdir(folder)
        _restore_global_hooks(hooks, who, flags)
        _flag_threads(threads, who, flags)
        _end_processes(processes, who, flags)


def _restore_environment(before: dict[str, str], who: str, flags: Flags) -> None:
    names = sorted(
        name
        for name in before.keys() | os.environ.keys()
        if before.get(name) != os.environ.get(name)
    )
    if names:
        flags.add(who, f"changed the environment: {', '.join(names[:8])}; restored")
        os.environ.clear()
        os.environ.update(before)


def _restore_signals(before: dict[signal.Signals, Any], who: str, flags: Flags) -> None:
    for number, handler in before.items():
        if signal.getsignal(number) != handler:
            # Fails outside the main thread, and for a handler that C code installed.
            with suppress(OSError, ValueError, TypeError):
                signal.signal(number, handler)
            flags.add(who, f"changed what {signal.Signals(number).name} does; restored")


def _folder() -> str | None:
    """The working directory; None if it was deleted."""
    try:
        return os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        return None


def _global_hooks() -> list[dict[int, Any]]:
    """The registries of hooks that torch calls on every module."""
    names = (
        "_global_forward_hooks",
        "_global_forward_pre_hooks",
        "_global_backward_hooks",
        "_global_backward_pre_hooks",
    )
    return [
        registry
        for name in names
        if isinstance(registry := getattr(torch_module, name, None), dict)
    ]


def _restore_global_hooks(before: list[dict[int, Any]], who: str, flags: Flags) -> None:
    for registry, old in zip(_global_hooks(), before, strict=True):
        if dict(registry) != old:
            flags.add(who, "left a hook on all modules; removed")
            registry.clear()
            registry.update(old)


def _flag_threads(before: set[threading.Thread], who: str, flags: Flags) -> None:
    names = [thread.name for thread in _new_threads(before)]
    if names:
        flags.add(
            who,
            f"left threads running: {', '.join(names[:5])}; "
            "they share the cores with what is timed",
        )


def _new_threads(before: set[threading.Thread]) -> list[threading.Thread]:
    """Threads that were started and still run after `GRACE_S`."""
    new = [
        thread
        for thread in threading.enumerate()
        # The monitor of tqdm's progress bars wakes every ten seconds for an instant: not worth a
        # flag.
        if thread not in before
        and thread.is_alive()
        and not type(thread).__module__.startswith("tqdm.")
    ]
    deadline = time.monotonic() + GRACE_S
    for thread in new:
        if thread is not threading.current_thread():
            thread.join(max(0.0, deadline - time.monotonic()))
    return [thread for thread in new if thread.is_alive()]


def _end_processes(before: set[int], who: str, flags: Flags) -> None:
    # Python and torch start helpers that go on serving this process.
    helpers = {
        pid for pid in children() - before if any(name in command_line(pid) for name in HELPERS)
    }
    if ended := end_children(GRACE_S, spare=before | helpers):
        flags.add(
            who, f"left {len(ended)} processes running, which were ended: {'; '.join(ended[:3])}"
        )


def _shown(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, (tuple, set, frozenset)) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
