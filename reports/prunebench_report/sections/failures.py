"""Cells without a result: why, and how to run them again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunebench_report.data.selection import MOST_FAILURES
from prunebench_report.text import MISSING, shorten, size, tail

if TYPE_CHECKING:
    from prunebench.record.record import Error, Record
    from prunebench_report.data.report_input import ReportInput

_UNEXPLAINED = "the record has no error"
_LONGEST_MESSAGE = 1000
_LONGEST_BRIEF = 200


def section(given: ReportInput) -> dict[str, Any]:
    """`failures` with their logs, `more_failures` in one line each, and `damaged` records."""
    failed, explained = _failed(given), explained_failures(given)
    return {
        "failures": [_failure(one, given.names[one.id]) for one in explained],
        "more_failures": [_brief(one, given.names[one.id]) for one in failed[len(explained) :]],
        "damaged": [
            {"name": given.names[one.path.stem], "file": one.path.name, "reason": one.reason}
            for one in given.damaged
        ],
    }


def explained_failures(given: ReportInput) -> list[Record]:
    """The records whose failure is shown with its error, hint, log and command."""
    return _failed(given)[:MOST_FAILURES]


def _failed(given: ReportInput) -> list[Record]:
    return [record for record in given.records if record.status != "ok"]


def _failure(record: Record, name: str) -> dict[str, Any]:
    error = record.error
    return {
        "id": record.id,
        "name": name,
        "status": record.status,
        "phase": error.phase if error else MISSING,
        "type": error.type if error else MISSING,
        "message": shorten(error.message, _LONGEST_MESSAGE) if error else _UNEXPLAINED,
        "hint": error.hint if error else None,
        "peak": size(error.peak_rss_bytes) if error and error.peak_rss_bytes else None,
        "log": tail(_without_message(error)) if error else "",
        "command": command(record),
    }


def _without_message(error: Error) -> str:
    """The log without its last line if that is the error, which has been said already."""
    log, message = error.log_tail.rstrip(), error.message.strip()
    if not message or not log.endswith(message):
        return log
    # The line also names the error's class, before the message.
    return log[: log.rfind("\n", 0, len(log) - len(message)) + 1]


def _brief(record: Record, name: str) -> dict[str, str]:
    error = record.error
    reason = _UNEXPLAINED
    if error:
        reason = f"{error.type} in {error.phase}: {shorten(error.message, _LONGEST_BRIEF)}"
    return {"id": record.id, "name": name, "status": record.status, "reason": reason}


def command(record: Record) -> str:
    """The command that runs this cell again."""
    if record.error and record.error.command:
        return record.error.command
    given = record.provenance.get("command")
    if isinstance(given, str) and given:
        return given
    return f"python -m prunebench.cell specs/{record.id}.json"
