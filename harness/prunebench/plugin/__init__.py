"""Plugins: everything a plugin author registers, and how the host finds it.

A plugin is a module named by an entry point of the group `prunebench`. It marks functions with `hookimpl`;
`prunebench.plugin.hookspecs` lists the hooks.
"""

from __future__ import annotations

import pluggy

NAME = "prunebench"
"""Hook prefix and entry-point group."""

API_VERSION = 1
"""Raised when a hook or base class changes incompatibly; a plugin may say `PRUNEBENCH_API = 1` in its module.

Within a version hooks, their arguments and base classes are only added to. What is to go is marked as deprecated
(pluggy's `warn_on_impl` for hooks) for at least one minor release before the version is raised.
"""

hookimpl = pluggy.HookimplMarker(NAME)
