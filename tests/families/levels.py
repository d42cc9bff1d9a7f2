"""What is tried on every type of causal LM, level by level.

A check takes the name of a type. It returns "works", or "refused: " and the sentence that the user
gets. It raises AssertionError if something went wrong silently.
"""

from __future__ import annotations

from collections.abc import Callable

WORKS = "works"
Check = Callable[[str], str]
LEVELS: dict[str, Check] = {}


def level(name: str) -> Callable[[Check], Check]:
    """Register a check under the name of its column."""

    def register(check: Check) -> Check:
        LEVELS[name] = check
        return check

    return register
