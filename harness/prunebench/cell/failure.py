"""The record of a cell that raised an exception."""

from __future__ import annotations

import traceback

import torch

from prunebench.errors import PrunebenchError, described, printable
from prunebench.experiment.cell import Cell
from prunebench.record.record import Error, Record, utc_now

LOG_CHARACTERS = 8000


def failed_record(
    cell: Cell,
    started: str,
    error: BaseException,
    phase: str,
    command: str,
    peak_rss_bytes: int | None,
) -> Record:
    """The record of ``cell``, which raised ``error`` in ``phase``."""
    expected = error if isinstance(error, PrunebenchError) else None
    return Record(
        id=cell.id,
        cell=cell,
        status="out-of-memory" if _is_out_of_memory(error) else "failed",
        started=started,
        finished=utc_now(),
        error=Error(
            phase=phase,
            type=type(error).__name__,
            message=described(error),
            hint=expected.hint if expected else None,
            log_tail=printable("".join(traceback.format_exception(error))[-LOG_CHARACTERS:]),
            command=command,
            peak_rss_bytes=peak_rss_bytes,
        ),
    )


def _is_out_of_memory(error: BaseException) -> bool:
    # torch's allocator on the CPU raises a plain RuntimeError with this text.
    return isinstance(
        error, MemoryError | torch.OutOfMemoryError
    ) or "can't allocate memory" in str(error)
