"""The log of a cell: kept from filling the disk, and quoted in the record if the cell fails."""

from __future__ import annotations

import os
from pathlib import Path

TAIL_BYTES = 8000
"""The part of a log that goes on a record."""
MAX_BYTES = 64_000_000
"""A longer log is cut to its last `KEPT_BYTES`."""
KEPT_BYTES = 1_000_000


def shorten(log: Path) -> None:
    """Cut the log to its end if it is longer than `MAX_BYTES`; the cell may go on writing."""
    try:
        if log.stat().st_size > MAX_BYTES:
            end = tail(log, KEPT_BYTES)
            # The cell opened the log for appending, so it continues at the new end.
            os.truncate(log, 0)
            with log.open("a", encoding="utf-8") as file:
                file.write(f"... more than {MAX_BYTES} bytes of output, its end:\n{end}")
    except OSError:
        # No log, or no space for one: neither is a reason to end the cell.
        return


def tail(log: Path, count: int = TAIL_BYTES) -> str:
    """The last ``count`` bytes as text; empty if there is no log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - count))
            return file.read(count).decode(errors="replace")
    except OSError:
        return ""
