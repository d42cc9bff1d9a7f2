"""The record of a cell that ended without writing one: killed, crashed, over a limit."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

from prunebench.cell.__main__ import command
from prunebench.engine.cell_log import tail
from prunebench.engine.job import Limits, ProcessExit
from prunebench.experiment.cell import Cell
from prunebench.record.record import Error, Record, Status, utc_now


@dataclass(frozen=True)
class LostCell:
    """Why a cell left no record; ``kind`` names the cause in two or three words."""

    status: Status
    kind: str
    message: str
    hint: str | None = None


def cause_of(ended: ProcessExit, limits: Limits, *, kernel_killed: bool) -> LostCell:
    """Why a process ended without a record.

    ``kernel_killed``: while it ran, the kernel killed some process for lack of memory.
    """
    if ended.exceeded == "time":
        message = f"ended by the harness, the limit is {limits.time_s:g} s"
        return LostCell("timeout", "timeout", message, "`limits: {time_s: ...}` in the suite")
    if ended.exceeded == "memory":
        message = (
            f"used {ended.peak_rss_bytes or 0:,} bytes of memory, "
            f"the limit is {limits.memory_bytes or 0:,}"
        )
        return LostCell(
            "out-of-memory", "memory limit", message, "`limits: {memory: ...}` in the suite"
        )
    if ended.code >= 0:
        return LostCell(
            "failed", "exit", f"the process ended with code {ended.code} and left no record"
        )
    name = _signal_name(-ended.code)
    # The kernel kills with SIGKILL, and so may anybody; its own counter tells which it was.
    if ended.code == -signal.SIGKILL and kernel_killed:
        return LostCell("out-of-memory", name, "killed by the kernel because memory ran out")
    if ended.code == -signal.SIGKILL:
        return LostCell("failed", name, "killed from outside; the kernel reports no lack of memory")
    return LostCell("failed", name, f"the process was ended by {name}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def lost_record(
    cell: Cell,
    spec: Path,
    log: Path,
    *,
    started: str,
    phase: str,
    lost: LostCell,
    peak_rss_bytes: int | None = None,
) -> Record:
    """The record of ``cell``, which was last seen in ``phase``."""
    return Record(
        id=cell.id,
        cell=cell,
        status=lost.status,
        started=started,
        finished=utc_now(),
        error=Error(
            phase=phase,
            type=lost.kind,
            message=lost.message,
            hint=lost.hint,
            log_tail=tail(log),
            command=command(spec),
            peak_rss_bytes=peak_rss_bytes,
        ),
    )
