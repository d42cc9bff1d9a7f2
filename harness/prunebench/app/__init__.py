"""What prunebench does, one file a use case; the command line and notebooks call these and print.

The names are looked up when first used: `run_suite` starts importing torch in a process of its own
before this process imports anything heavy, and `plan_suite` never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunebench.app.plan import plan_suite
    from prunebench.app.profile import profile_model
    from prunebench.app.prune import prune_model
    from prunebench.app.results import load_run
    from prunebench.app.run import run_suite

__all__ = ["load_run", "plan_suite", "profile_model", "prune_model", "run_suite"]

_HOMES = {
    "load_run": "prunebench.app.results",
    "plan_suite": "prunebench.app.plan",
    "profile_model": "prunebench.app.profile",
    "prune_model": "prunebench.app.prune",
    "run_suite": "prunebench.app.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'prunebench.app' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
