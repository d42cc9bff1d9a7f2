"""What a plugin must leave as it was: hooks, gradients, randomness, precision, threads.

And a network that refuses every connection.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch

from prunebench.isolation.flags import Flags
from prunebench.isolation.process_guard import guarded
from prunebench.plugin.plugin_code import plugin_code
from prunebench.testing.promises import BrokenPromiseError

# torch has no public way to list a module's hooks.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def of_process() -> dict[str, Any]:
    """The settings of this process that a plugin could change, each with a name for people."""
    generator: Any = np.random.get_state()  # noqa: NPY002 - the global one is meant
    backends: Any = torch.backends
    return {
        "torch's random state": torch.random.get_rng_state().numpy().tobytes(),
        "numpy's random state": (generator[1].tobytes(), generator[2]),
        "Python's random state": random.getstate(),
        "the default dtype": torch.get_default_dtype(),
        "the number of threads": torch.get_num_threads(),
        "whether gradients are recorded": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "the precision of float32 products on the CPU": backends.mkldnn.matmul.fp32_precision,
        "TF32 in products": backends.cuda.matmul.fp32_precision,
        "TF32 in convolutions": backends.cudnn.conv.fp32_precision,
    }


def of_model(model: Any) -> dict[str, Any]:
    """The settings of a model that a plugin could change, each with a name for people."""
    parameters = dict(model.named_parameters())
    return {
        "gradients": [name for name, parameter in parameters.items() if parameter.grad is not None],
        "parameters that want gradients": [
            name for name, parameter in parameters.items() if parameter.requires_grad
        ],
        "dtypes": {str(parameter.dtype) for parameter in parameters.values()},
        "training mode": [name for name, module in model.named_modules() if module.training],
    }


def changed(model: Any, before: dict[str, Any]) -> str | None:
    """The first setting of ``model`` that is not as `of_model` found it ``before``, in words."""
    for what, value in of_model(model).items():
        if value == before[what]:
            continue
        if new := sorted(value - before[what]) if what == "dtypes" else []:
            name = next(name for name, one in model.named_parameters() if str(one.dtype) in new)
            return f"{name} became {new[0].removeprefix('torch.')}"
        return f"{what}: {value or 'none'} after it, {before[what] or 'none'} before"
    return None


@contextmanager
def undone(plugin: Any, who: str, flags: Flags) -> Iterator[None]:
    """Run a plugin's code inside as a cell does: what it changes in the process is undone.

    A setting that leaks must not hide the next leak. Each becomes a sentence in ``flags``, and an
    error says which line of the plugin raised it.
    """
    with guarded(who, flags), plugin_code(plugin):
        yield


def hooks(model: Any) -> dict[int, int]:
    """The number of hooks of each module, by the module's id."""
    return {id(module): _hooks(module) for module in model.modules()}


def hooked(model: Any, before: dict[int, int]) -> list[str]:
    """The modules whose number of hooks is not the one ``before``."""
    return [
        name
        for name, module in model.named_modules()
        if _hooks(module) != before.get(id(module), 0)
    ]


def _hooks(module: torch.nn.Module) -> int:
    return sum(len(getattr(module, kind)) for kind in _HOOKS)


@contextmanager
def no_network() -> Iterator[None]:
    """Inside the block, every connection and every look-up of a host is a broken promise."""

    def refuse(*arguments: Any, **_: Any) -> Any:
        raise BrokenPromiseError(
            f"asks the network: {arguments[0] if arguments else 'a connection'}"
        )

    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> Any:
        # Unix sockets stay on this machine; torch and multiprocessing use them.
        return connect(self, address) if self.family == socket.AF_UNIX else refuse(address)

    with (
        mock.patch.object(socket.socket, "connect", local_only),
        mock.patch.object(socket, "getaddrinfo", refuse),
    ):
        yield
