"""A process that has imported the heavy libraries and forks one child a cell.

Importing torch and transformers takes seconds; forking takes milliseconds, and the child is as much a process of its
own as a started one: own memory, own session, own exit. The zygote itself never touches a tensor or a GPU.

It adopts what a cell leaves behind and ends it before the next cell begins, and when the run itself is killed.

Protocol, one JSON line each way: {"argv": [...], "log": path, "environment": {...}, "imports": [...]} -> {"pid": n}
-> {"exit": code, "peak_rss_bytes": n, "left": [command lines]}, code < 0 for a signal. The standard input closing ends it.
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from prunebench.isolation.processes import (
    adopt_orphans,
    be_killed_first,
    die_with_parent,
    end_children,
    end_session,
)

GRACE_S = 0.5
"""Helpers of a cell that has ended, its memory sampler for one, end by themselves within this time."""


def serve() -> None:
    """Answer requests until the standard input closes. Linux only (os.fork with threads' libraries loaded)."""
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run decides what Ctrl-C means
    die_with_parent(signal.SIGTERM)
    adopt_orphans()
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # otherwise asking whether there is a GPU would initialise CUDA, and a forked child could not use it any more
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    with _many_modules():
        import prunebench.cell.run  # noqa: F401
        from prunebench.model.from_pretrained import import_libraries

        import_libraries()

    def reply(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    reply({"ready": os.getpid()})
    # not the buffered reader: a forked child would share its buffer
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
        reply({"exit": code, "peak_rss_bytes": usage.ru_maxrss * 1024, "left": left})
    end_children(0)


@contextmanager
def _many_modules() -> Iterator[None]:
    gc.disable()  # thousands of modules make millions of objects, none of them garbage: a fifth of the time
    yield
    gc.enable()
    gc.freeze()  # collecting in a child would copy the shared pages


def _import(names: Sequence[str]) -> None:
    """What every child would import by itself; one that cannot be had is the child's trouble."""
    missing = [name for name in names if name not in sys.modules]
    if not missing:
        return
    environment = dict(os.environ)
    with _many_modules():
        for name in missing:
            with suppress(Exception):
                importlib.import_module(name)
    for name in os.environ.keys() - environment.keys():  # lm-eval sets some
        del os.environ[name]


def _leave(*_: Any) -> None:
    """The run has ended or wants this process to: take everything along, the running cell first."""
    from prunebench.isolation.processes import children

    for pid in children():
        end_session(pid)
    end_children(0)
    os._exit(0)


def _child(request: dict[str, Any]) -> None:
    """Be the cell: own session, log as output, and leave without the zygote's clean-up."""
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
        tempfile.tempdir = None  # asked for again, from the environment
        from prunebench.cell.__main__ import main

        code = main(request["argv"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        _flush()
        os._exit(code & 0xFF)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (
            OSError,
            ValueError,
            AttributeError,
        ):  # a plugin closed or replaced it, or the disk is full
            continue


def _read_line(descriptor: int) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(descriptor, 1)
        if not byte:
            return b""
        line += byte
    return line


if __name__ == "__main__":
    serve()
