"""Plugins: what their authors use, and how prunebench finds, checks and calls them.

A plugin is a module with an entry point in the group `prunebench`. It marks functions with
`hookimpl`; `prunebench.plugin.hookspecs` lists the hooks that they can implement.
"""

from __future__ import annotations

import pluggy

NAME = "prunebench"
"""The prefix of all hooks, and the entry-point group. The distribution that has the built-in
plugins has this name too."""

API_VERSION = 1
"""Raised when a hook or a base class changes incompatibly.

Within an API version we only add hooks, arguments and base classes. Anything scheduled for removal
emits a deprecation warning (for hooks: pluggy's `warn_on_impl`) for at least one minor release. A
module that says `PRUNEBENCH_API = 1` is refused by a prunebench with another version.
"""

hookimpl = pluggy.HookimplMarker(NAME)
