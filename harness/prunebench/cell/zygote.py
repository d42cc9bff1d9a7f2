"""A process that has imported the heavy libraries and forks one child a cell.

Importing torch and transformers takes seconds; forking takes milliseconds, and the child is as much a process of its
own as a started one: own memory, own session, own exit. The zygote itself never touches a tensor or a GPU.

Protocol, one JSON line each way: {"argv": [...], "log": path} -> {"pid": n} -> {"exit": code}, code < 0 for a signal.
The standard input closing ends the zygote.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import traceback
from typing import Any


def serve() -> None:
    """Answer requests until the standard input closes. Linux only (os.fork with threads' libraries loaded)."""
    die_with_parent()
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # otherwise asking whether there is a GPU would initialise CUDA, and a forked child could not use it any more
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    gc.disable()  # thousands of modules make millions of objects, none of them garbage: a fifth of the time
    import prunebench.cell.run  # noqa: F401
    from prunebench.model.load import import_libraries

    import_libraries()
    gc.enable()
    gc.freeze()  # collecting in a child would copy the shared pages

    def reply(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    reply({"ready": os.getpid()})
    # not the buffered reader: a forked child would share its buffer
    for line in iter(lambda: _read_line(0), b""):
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            replies.close()
            _child(request)
        reply({"pid": pid})
        _, status = os.waitpid(pid, 0)
        reply({"exit": os.waitstatus_to_exitcode(status)})


def die_with_parent() -> None:
    """Ask the kernel to end this process when its parent ends, so that a killed run leaves nothing behind."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)


def _child(request: dict[str, Any]) -> None:
    """Be the cell: own session, log as output, and leave without the zygote's clean-up."""
    code = 1
    try:
        os.setsid()
        die_with_parent()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        from prunebench.cell.__main__ import main

        code = main(request["argv"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


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
