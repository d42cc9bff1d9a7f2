"""What a method may change in its process besides its model: noted before it runs, put back and named after it.

Measuring begins in the state that the harness made, whatever the method did to dtypes, threads, TF32, environment,
signals and the rest. What cannot be put back is only named.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.modules import module as torch_module

from prunebench.isolation.processes import children, end_children

Write = Callable[[Any], object] | None


@dataclass
class Flags:
    """What was found changed, one sentence each."""

    found: list[str] = field(default_factory=list)

    def add(self, who: str, what: str) -> None:
        self.found.append(f"{who} {what}")


@contextmanager
def guarded(who: str, flags: Flags) -> Iterator[None]:
    """Run foreign code inside; afterwards, also after an exception, its traces in this process are gone and in ``flags``.

    ``who`` is 'the method', for example. Other threads and processes that it left are named; the processes are ended.
    """
    settings = _settings()
    before = [_read(read) for _, read, _ in settings]
    environment, path = dict(os.environ), list(sys.path)
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    hooks = [dict(registry) for registry in _global_hooks()]
    threads, processes = set(threading.enumerate()), children()
    folder = os.getcwd()  # noqa: PTH109
    try:
        yield
    finally:
        for (name, read, write), old in zip(settings, before, strict=True):
            if (new := _read(read)) != old:
                flags.add(
                    who,
                    f"left {name} at {_shown(new)}, it was {_shown(old)}{_restored(write, old)}",
                )
        _restore_environment(environment, who, flags)
        if sys.path != path:
            flags.add(who, "changed sys.path; restored")
            sys.path[:] = path
        _restore_signals(handlers, who, flags)
        if _folder() != folder:
            flags.add(who, "changed the working directory; restored")
            os.chdir(folder)
        for registry, old in zip(_global_hooks(), hooks, strict=True):
            if dict(registry) != old:
                flags.add(who, "left a hook on all modules; removed")
                registry.clear()
                registry.update(old)
        names = [thread.name for thread in _living(threads)]
        if names:
            flags.add(
                who,
                f"left threads running: {', '.join(names[:5])}; they share the cores with what is timed",
            )
        if ended := end_children(0.2, spare=processes | _helpers(processes)):
            flags.add(
                who,
                f"left {len(ended)} processes running, which were ended: {'; '.join(ended[:3])}",
            )


def _settings() -> list[tuple[str, Callable[[], Any], Write]]:
    """Names of global settings, how they are read, and how they are put back; None where they cannot be."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    found: list[tuple[str, Callable[[], Any], Write]] = [
        ("the default dtype", torch.get_default_dtype, torch.set_default_dtype),
        ("the default device", torch.get_default_device, lambda _: torch.set_default_device(None)),
        ("the number of threads", torch.get_num_threads, torch.set_num_threads),
        ("gradients enabled", torch.is_grad_enabled, torch.set_grad_enabled),
        ("torch's seed", torch.initial_seed, torch.manual_seed),
        ("the precision of float32 products", _precision, _set_precision),
        ("cuDNN's TF32", lambda: cudnn.allow_tf32, _setter(cudnn, "allow_tf32")),
        ("cuDNN's benchmark mode", lambda: cudnn.benchmark, _setter(cudnn, "benchmark")),
        (
            "cuDNN's deterministic mode",
            lambda: cudnn.deterministic,
            _setter(cudnn, "deterministic"),
        ),
        ("cuDNN enabled", lambda: cudnn.enabled, _setter(cudnn, "enabled")),
        ("deterministic algorithms", _deterministic, _set_deterministic),
        ("flash attention", cuda.flash_sdp_enabled, cuda.enable_flash_sdp),
        (
            "memory-efficient attention",
            cuda.mem_efficient_sdp_enabled,
            cuda.enable_mem_efficient_sdp,
        ),
        ("plain attention", cuda.math_sdp_enabled, cuda.enable_math_sdp),
        ("cuDNN's attention", cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp),
        (
            "the garbage collector enabled",
            gc.isenabled,
            lambda on: gc.enable() if on else gc.disable(),
        ),
        ("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
        ("a trace function", sys.gettrace, sys.settrace),
        ("a profile function", sys.getprofile, sys.setprofile),
        ("logging disabled up to", lambda: logging.root.manager.disable, logging.disable),
        ("the standard output", lambda: sys.stdout, _setter(sys, "stdout")),
        ("the standard error", lambda: sys.stderr, _setter(sys, "stderr")),
        (
            "an alarm",
            lambda: signal.getitimer(signal.ITIMER_REAL)[0] > 0,
            lambda _: signal.alarm(0),
        ),
    ]
    for kind in ("cpu", "cuda"):
        found.append((f"autocast on {kind}", _autocast(kind), _set_autocast(kind)))
    if hasattr(os, "sched_setaffinity"):
        found.append(
            (
                "the cores",
                lambda: os.sched_getaffinity(0),
                lambda cores: os.sched_setaffinity(0, cores),
            )
        )
        found.append(("its niceness", lambda: os.getpriority(os.PRIO_PROCESS, 0), None))
    return found + list(_resource_limits())


def _resource_limits() -> Iterator[tuple[str, Callable[[], Any], Write]]:
    import resource

    for name in (
        "RLIMIT_FSIZE",
        "RLIMIT_NOFILE",
        "RLIMIT_AS",
        "RLIMIT_DATA",
        "RLIMIT_CPU",
        "RLIMIT_STACK",
    ):
        number: int = getattr(resource, name)
        yield name, _limit_reader(number), _limit_writer(number)


def _limit_reader(number: int) -> Callable[[], Any]:
    import resource

    return lambda: resource.getrlimit(number)


def _limit_writer(number: int) -> Callable[[Any], None]:
    import resource

    return lambda limits: resource.setrlimit(number, limits)


def _setter(owner: Any, name: str) -> Callable[[Any], None]:
    return lambda value: setattr(owner, name, value)


def _autocast(kind: str) -> Callable[[], Any]:
    return lambda: torch.is_autocast_enabled(kind)


def _set_autocast(kind: str) -> Callable[[Any], None]:
    return lambda enabled: torch.set_autocast_enabled(kind, enabled)


def _precision() -> tuple[str, str]:
    """TF32 and its kin by the older and the newer interface of torch: each can be set without the other knowing."""
    return torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.fp32_precision


def _set_precision(value: tuple[str, str]) -> None:
    torch.set_float32_matmul_precision(value[0])
    torch.backends.cuda.matmul.fp32_precision = value[1]


def _deterministic() -> tuple[bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


def _set_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


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


def _read(read: Callable[[], Any]) -> Any:
    """A setting; None where this build of torch does not know it, or two interfaces to it disagree."""
    try:
        return read()
    except (RuntimeError, AttributeError, OSError, ValueError):
        return None


def _restored(write: Write, old: Any) -> str:
    if write is None:
        return "; that cannot be undone"
    try:
        write(old)
    except (RuntimeError, AttributeError, OSError, ValueError, TypeError) as error:
        return f"; that could not be undone ({error})"
    return "; restored"


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
            with suppress(
                OSError, ValueError, TypeError
            ):  # not from another thread, not what C code had set
                signal.signal(number, handler)
            flags.add(who, f"changed what {signal.Signals(number).name} does; restored")


def _folder() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        return None


def _living(before: set[threading.Thread]) -> list[threading.Thread]:
    """Threads that are new and stay; one that is about to end is given a moment.

    The monitor of progress bars (tqdm) wakes every ten seconds for an instant: that is no trace worth a flag.
    """
    new = [
        thread
        for thread in threading.enumerate()
        if thread not in before
        and thread.is_alive()
        and not type(thread).__module__.startswith("tqdm.")
    ]
    deadline = time.monotonic() + 0.2
    for thread in new:
        if thread is not threading.current_thread():
            thread.join(max(0.0, deadline - time.monotonic()))
    return [thread for thread in new if thread.is_alive()]


def _helpers(before: set[int]) -> set[int]:
    """New children that Python or torch keep for themselves: they serve this process on."""
    from prunebench.isolation.processes import HELPERS, command_line

    return {
        pid for pid in children() - before if any(name in command_line(pid) for name in HELPERS)
    }


def _shown(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, (tuple, set, frozenset)) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
