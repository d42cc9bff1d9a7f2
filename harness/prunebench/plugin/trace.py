"""Hook calls on the standard error, where PRUNEBENCH_TRACE_HOOKS=1: which plugin was asked, what it gave, how long it took."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

VARIABLE = "PRUNEBENCH_TRACE_HOOKS"
T = TypeVar("T")


def traced(hook: str, plugin: str, call: Callable[[], T]) -> T:
    """What ``call`` gives; with a line about it where tracing is on. Raises what it raises."""
    if os.environ.get(VARIABLE, "") in {"", "0"}:
        return call()
    begun = time.perf_counter()
    said: Any = "nothing"
    try:
        value = call()
        said = _shown(value)
    except BaseException as error:
        said = f"raised {type(error).__name__}: {error}"
        raise
    finally:
        sys.stderr.write(
            f"hook {hook} of {plugin}: {said} ({1000 * (time.perf_counter() - begun):.1f} ms)\n"
        )
    return value


def _shown(value: Any) -> str:
    several = value if isinstance(value, list | tuple) else [value]
    return ", ".join(str(getattr(one, "name", None) or one) for one in several) or "nothing"
