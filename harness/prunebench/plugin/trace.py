"""Trace hook calls: which plugin was asked, what it returned, and how long it took.

If the environment says PRUNEBENCH_TRACE_HOOKS=1, each call writes one line to stderr.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

VARIABLE = "PRUNEBENCH_TRACE_HOOKS"
T = TypeVar("T")


def traced(hook: str, plugin: str, call: Callable[..., T], *arguments: Any) -> T:
    """Call ``call(*arguments)`` and return what it returns, with a trace line if tracing is on."""
    if os.environ.get(VARIABLE, "") in {"", "0"}:
        return call(*arguments)
    begun = time.perf_counter()
    outcome: Any = "nothing"
    try:
        value = call(*arguments)
        outcome = _names(value)
    except BaseException as error:
        outcome = f"raised {type(error).__name__}: {error}"
        raise
    finally:
        # Not stdout, which may be JSON for another program.
        sys.stderr.write(
            f"hook {hook} of {plugin}: {outcome} ({1000 * (time.perf_counter() - begun):.1f} ms)\n"
        )
    return value


def _names(value: Any) -> str:
    several = value if isinstance(value, list | tuple) else [value]
    return ", ".join(str(getattr(one, "name", None) or one) for one in several) or "nothing"
