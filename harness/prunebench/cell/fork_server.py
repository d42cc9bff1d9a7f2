"""Fork one child per cell from a process that has imported the heavy libraries.

Importing torch and transformers takes seconds, a fork takes milliseconds, and the child is as
separate as a fresh process: own memory, own session, own exit code. This process itself never
touches a tensor or a GPU. It becomes the parent of what a cell leaves behind and ends it before the
next cell begins, and also when the run is killed.

Protocol, JSON lines on the standard input and output:

    -> {"argv": [...], "log": path, "environment": {...}, "imports": [...]}
    <- {"pid": n}
    <- {"exit": code, "peak_rss_bytes": n, "left": [command lines]}    code < 0: a signal

The process ends when its standard input is closed.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from prunebench.isolation.huge_pages import ask_for_huge_pages
from prunebench.isolation.processes import (
    adopt_orphans,
    be_killed_first,
    children,
    die_with_parent,
    end_children,
    end_session,
)

# Helpers of a cell that has ended, such as its memory sampler, end by themselves within this time.
GRACE_S = 0.5


def serve() -> None:
    """Answer requests until the standard input is closed. Linux only."""
    signal.signal(signal.SIGTERM, _leave)
    # The terminal sends Ctrl-C to every process; what it means is the run's decision.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(signal.SIGTERM)
    adopt_orphans()
    # The standard output belongs to the protocol; whatever libraries print goes to the log.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # `torch.cuda.is_available()` initialises CUDA unless this is set, and a child that is forked
    # afterwards cannot use CUDA any more.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    ask_for_huge_pages()
    with _many_imports():
        import prunebench.cell.run  # noqa: F401
        from prunebench.model.from_pretrained import import_libraries
        from prunebench.plugin.host import built_in_modules

        import_libraries("llama", "mistral", "qwen2", "qwen3", "gemma", "opt", "gpt_neox", "phi")
    _import(built_in_modules())

    def reply(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    reply({"ready": os.getpid()})
    for line in iter(lambda: _read_line(0), b""):
        request = json.loads(line)
        _import(request["imports"])
        pid = os.fork()
        if pid == 0:
            replies.close()
            _child(request)
        reply({"pid": pid})
        _, status, usage = os.wait4(pid, 0)
        left = end_children(GRACE_S)
        code = os.waitstatus_to_exitcode(status)
        # Linux gives ru_maxrss in KiB.
        reply({"exit": code, "peak_rss_bytes": usage.ru_maxrss * 1024, "left": left})
    end_children(0)


@contextmanager
def _many_imports() -> Iterator[None]:
    """Import without the garbage collector, and keep its hands off the modules afterwards."""
    # Thousands of modules make millions of objects and no garbage; looking for it takes a fifth of
    # the time.
    gc.disable()
    yield
    gc.enable()
    # A collection in a child would write to every object's header and so copy the shared pages.
    gc.freeze()


def _import(names: Iterable[str]) -> None:
    """Import what every child would import by itself."""
    missing = [name for name in names if name not in sys.modules]
    if not missing:
        return
    environment = dict(os.environ)
    with _many_imports():
        for name in missing:
            # Ignore failures: the child will report them.
            with suppress(Exception):
                importlib.import_module(name)
    # lm-eval sets variables when it is imported; a child should start with the run's environment.
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]


def _leave(*_: Any) -> None:
    """The run has ended or asks this process to end: end everything, the running cell first."""
    for pid in children():
        end_session(pid)
    end_children(0)
    os._exit(0)


def _child(request: dict[str, Any]) -> None:
    """Be the cell: with its own session and its log as output. Never returns."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        die_with_parent()
        be_killed_first()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.environ.update(request.get("environment", {}))
        # Cached by the parent; None makes `tempfile` look at this child's TMPDIR.
        tempfile.tempdir = None
        from prunebench.cell.__main__ import main

        code = main(request["argv"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        _flush()
        # Not sys.exit: the exit handlers in this copy of the process belong to the fork server.
        os._exit(code & 0xFF)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        # Fails if a plugin closed or replaced the stream, or if the disk is full.
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()


def _read_line(descriptor: int) -> bytes:
    # Unbuffered: a child would inherit the buffer with the start of the next request.
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(descriptor, 1)
        if not byte:
            return b""
        line += byte
    return line


if __name__ == "__main__":
    serve()
