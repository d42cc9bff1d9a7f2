"""The base class of runtimes: the engines in which people serve a model, such as llama.cpp.

A suite names them under `profile.runtimes`. The pruned model is converted for each, and timed there
in turn with the dense one. Nothing here imports torch, so that `prunebench plugins` stays fast.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from prunebench.plugin.api import options
from prunebench.plugin.api.method import Reference
from prunebench.record.runtimes import EXACT


def installed(distributions: Iterable[str]) -> dict[str, str]:
    """The versions of those distributions that are installed."""
    found = {}
    for name in distributions:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


class RuntimeOptions(options.Options):
    """Options of a runtime."""

    precision: str = Field(
        EXACT,
        description="what weights are converted to; only fp32 must give the tokens of the model",
    )


class Session(ABC):
    """One converted model, ready to generate."""

    @abstractmethod
    def tokens(self, prompt: Sequence[int]) -> Iterator[int]:
        """Greedy tokens after ``prompt``, each as soon as it is known.

        The time to the first one counts as TTFT, each further one as a step. The iterator ends when
        prompt and tokens together have the ``length`` of `Runtime.open`; no token ends it earlier.
        Nothing that an earlier prompt left, such as a cached prefix, may shorten the work.
        """

    @abstractmethod
    def close(self) -> None:
        """Free the model. Called once, when no iterator is used any more."""


class Runtime(ABC):
    """An engine: subclass it, and return the class from `prunebench_register_runtime`.

    The instance lives in a process of its own, one for converting and one for timing, so an engine
    may crash or keep threads without harm to the cell. If it raises an exception there, the
    runtime's figures are not available, and the cell goes on.
    """

    name: ClassVar[str]
    packages: ClassVar[Sequence[str]] = ()
    """Distributions that must be installed; their versions go on the record, and a converted model
    is converted again if one changes."""
    reference: ClassVar[Reference | None] = None

    class Options(RuntimeOptions):
        """The runtime's options; replace it with a subclass of `prunebench.RuntimeOptions`."""

    def __init__(self, options: Any) -> None:
        self.options = options

    def refuses(self, folder: Path) -> str | None:  # noqa: ARG002 - for subclasses
        """Why the engine cannot run the checkpoint in ``folder``; None if it can.

        ``folder`` is what `save_pretrained` wrote, or a pruned model of prunebench, whose layers
        may have different shapes. A reason that is known here saves minutes of converting.
        """
        return None

    def versions(self) -> Mapping[str, str]:
        """Versions of what it runs, for the record: those of `packages`."""
        return installed(self.packages)

    @abstractmethod
    def convert(self, folder: Path, out: Path, precision: str) -> Path:
        """Write the model into the new folder ``out``, and return the path that `open` takes.

        The harness keeps the result as long as model, options and `packages` stay the same. Raise
        `prunebench.PrunebenchError` for a model that the engine cannot run.
        """

    @abstractmethod
    def open(self, path: Path, threads: int, length: int) -> Session:
        """Load what `convert` returned, for one sequence of ``length`` tokens on the CPU.

        ``threads`` CPU threads compute. Several sessions are open at the same time and used in
        turn.
        """
