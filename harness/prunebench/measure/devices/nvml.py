"""A thin, guarded session of NVML (module `pynvml`, distribution nvidia-ml-py).

Every call gives a value or None for "not available": no library, no driver, no permission, a call
that the GPU does not support, a GPU that is lost. Nothing here raises, and nothing imports torch.
"""

from __future__ import annotations

import importlib
from types import TracebackType
from typing import Any, Self

_LOST = ("NVMLError_GpuIsLost", "NVMLError_ResetRequired")
"""After these errors the GPU will not answer any more."""

_NOT_AVAILABLE = 1 << 63
"""NVML writes 'value not available' as all ones; some bindings turn that into None, some do not."""


class Nvml:
    """An NVML session, also as a context.

    If ``available`` is False, ``reason`` says why. ``lost`` names the error if a GPU was lost.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.lost: str | None = None
        self._library: Any = None
        try:
            library = importlib.import_module("pynvml")
            library.nvmlInit()
        except Exception as error:
            self.reason = f"{type(error).__name__}: {error}"
        else:
            self._library = library

    @property
    def available(self) -> bool:
        return self._library is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the session; every later call gives None."""
        library, self._library = self._library, None
        if library is not None:
            try:
                library.nvmlShutdown()
            except Exception as error:  # the session is over either way
                self.reason = self.reason or f"{type(error).__name__}: {error}"

    def call(self, name: str, *arguments: Any) -> Any:
        """What the function ``name`` of pynvml returns; None if it fails."""
        return self.ask(name, *arguments)[0]

    def ask(self, name: str, *arguments: Any) -> tuple[Any, str | None]:
        """Like `call`, with the reason if the function fails."""
        if not self.available:
            return None, self.reason or "the session is closed"
        try:
            return getattr(self._library, name)(*arguments), None
        except Exception as error:  # every NVML error means the same here: not available
            problem = f"{name}: {error}"
            if type(error).__name__ in _LOST:
                self.lost = problem
            return None, problem

    def constant(self, name: str) -> Any:
        """A constant or a structure of pynvml; None if this version does not have it."""
        return getattr(self._library, name, None)

    def driver(self) -> str | None:
        """Version of the driver, e.g. '570.86.15'."""
        return text(self.call("nvmlSystemGetDriverVersion"))


def text(value: Any) -> str | None:
    """A string from NVML; older bindings give bytes."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, str) else None


def count(value: Any) -> int | None:
    """A number from NVML; None if it is the code for 'not available'."""
    return value if isinstance(value, int) and 0 <= value < _NOT_AVAILABLE else None
