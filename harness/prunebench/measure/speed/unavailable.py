"""The error of an execution form that a model cannot run in."""

from __future__ import annotations


class UnavailableError(Exception):
    """Why a model cannot run in an execution form."""
