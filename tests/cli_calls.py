"""Calls the command line in this process, as the console script does."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple
from unittest import mock

from prunebench.cli import main


class Call(NamedTuple):
    code: int
    out: str
    err: str


def call(*words: object) -> Call:
    out, errors = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["prunebench", *map(str, words)]),
        # A command has a process of its own; this one frees memory as before.
        mock.patch("prunebench.isolation.heap.keep_freed_memory"),
        redirect_stdout(out),
        redirect_stderr(errors),
    ):
        try:
            main()
        except SystemExit as end:
            return Call(int(end.code or 0), out.getvalue(), errors.getvalue())
    raise AssertionError("a command ends by SystemExit")
