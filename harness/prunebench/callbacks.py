"""The default of callbacks that nobody set."""

from __future__ import annotations


def ignore(*_: object) -> None:
    """Accept any arguments and do nothing."""
