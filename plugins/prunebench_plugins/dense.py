"""The dense model: every other cell is compared with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from prunebench import Method, hookimpl

if TYPE_CHECKING:
    from prunebench import Context


class Dense(Method):
    """Prune nothing."""

    name = "dense"
    structure: ClassVar = frozenset({"none"})

    def prune(self, model: Any, context: Context) -> None:
        """Change nothing."""


@hookimpl
def prunebench_register_method() -> type[Method]:
    return Dense
