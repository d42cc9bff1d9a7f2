"""How to read and restore the global settings of a process that a plugin can change."""

from __future__ import annotations

import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

LIMITS = (
    "RLIMIT_FSIZE",
    "RLIMIT_NOFILE",
    "RLIMIT_AS",
    "RLIMIT_DATA",
    "RLIMIT_CPU",
    "RLIMIT_STACK",
)
# Reading or writing fails like this if this build of torch does not know the setting, or if two of
# its interfaces to the setting disagree.
_FAILURES = (RuntimeError, AttributeError, OSError, ValueError, TypeError)


class Setting(NamedTuple):
    """One setting; ``write`` is None if it cannot be restored."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object] | None

    def value(self) -> Any:
        """The current value; None if it cannot be read."""
        try:
            return self.read()
        except _FAILURES:
            return None

    def restore(self, old: Any) -> str:
        """Set it back to ``old``; returns what became of that, to end a sentence with."""
        if self.write is None:
            return "that cannot be undone"
        try:
            self.write(old)
        except _FAILURES as error:
            return f"that could not be undone ({error})"
        return "restored"


def global_settings() -> list[Setting]:
    """All settings that this process has."""
    return [*_torch_settings(), *_python_settings(), *_system_settings()]


def _torch_settings() -> Iterator[Setting]:
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    yield Setting("the default dtype", torch.get_default_dtype, torch.set_default_dtype)
    # Writing back what get_default_device() returns would install a device context that was not
    # there before; None removes the one that the plugin installed.
    yield Setting(
        "the default device", torch.get_default_device, lambda _: torch.set_default_device(None)
    )
    yield Setting("the number of threads", torch.get_num_threads, torch.set_num_threads)
    yield Setting("gradients enabled", torch.is_grad_enabled, torch.set_grad_enabled)
    yield Setting("torch's seed", torch.initial_seed, torch.manual_seed)
    yield Setting("the precision of float32 products", _precision, _set_precision)
    yield _attribute("cuDNN's TF32", cudnn, "allow_tf32")
    yield _attribute("cuDNN's benchmark mode", cudnn, "benchmark")
    yield _attribute("cuDNN's deterministic mode", cudnn, "deterministic")
    yield _attribute("cuDNN enabled", cudnn, "enabled")
    yield Setting("deterministic algorithms", _deterministic, _set_deterministic)
    yield Setting("flash attention", cuda.flash_sdp_enabled, cuda.enable_flash_sdp)
    yield Setting(
        "memory-efficient attention", cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp
    )
    yield Setting("plain attention", cuda.math_sdp_enabled, cuda.enable_math_sdp)
    yield Setting("cuDNN's attention", cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp)
    yield _autocast("cpu")
    yield _autocast("cuda")


def _python_settings() -> Iterator[Setting]:
    yield Setting(
        "the garbage collector enabled",
        gc.isenabled,
        lambda enabled: gc.enable() if enabled else gc.disable(),
    )
    yield Setting("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit)
    yield Setting("a trace function", sys.gettrace, sys.settrace)
    yield Setting("a profile function", sys.getprofile, sys.setprofile)
    yield Setting("logging disabled up to", lambda: logging.root.manager.disable, logging.disable)
    yield _attribute("the standard output", sys, "stdout")
    yield _attribute("the standard error", sys, "stderr")


def _system_settings() -> Iterator[Setting]:
    # The remaining time differs at every reading, so only whether an alarm is set is compared.
    yield Setting(
        "an alarm", lambda: signal.getitimer(signal.ITIMER_REAL)[0] > 0, lambda _: signal.alarm(0)
    )
    if hasattr(os, "sched_setaffinity"):
        yield Setting(
            "the cores",
            lambda: os.sched_getaffinity(0),
            lambda cores: os.sched_setaffinity(0, cores),
        )
        # Only root may lower the niceness again.
        yield Setting("its niceness", lambda: os.getpriority(os.PRIO_PROCESS, 0), None)
    for name in LIMITS:
        yield _limit(name, getattr(resource, name))


def _attribute(name: str, owner: Any, attribute: str) -> Setting:
    return Setting(
        name, lambda: getattr(owner, attribute), lambda value: setattr(owner, attribute, value)
    )


def _autocast(kind: str) -> Setting:
    return Setting(
        f"autocast on {kind}",
        lambda: torch.is_autocast_enabled(kind),
        lambda enabled: torch.set_autocast_enabled(kind, enabled),
    )


def _limit(name: str, number: int) -> Setting:
    return Setting(
        name,
        lambda: resource.getrlimit(number),
        lambda limits: resource.setrlimit(number, limits),
    )


def _precision() -> tuple[str, str]:
    """TF32 for float32 products, as torch's older and its newer interface report it.

    Each can be set without the other noticing, so both are compared.
    """
    return torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.fp32_precision


def _set_precision(value: tuple[str, str]) -> None:
    torch.set_float32_matmul_precision(value[0])
    torch.backends.cuda.matmul.fp32_precision = value[1]


def _deterministic() -> tuple[bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


def _set_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])
