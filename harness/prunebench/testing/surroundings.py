"""What a plugin must leave as it found it: hooks, gradients, randomness, precision, threads; and no network."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch

from prunebench.testing.trial import BrokenPromiseError

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def of_process() -> dict[str, Any]:
    """The settings of this process that a plugin may have changed, by what they are called."""
    drawn: Any = np.random.get_state()  # noqa: NPY002 - the global generator is what is looked at
    backends: Any = torch.backends
    return {
        "torch's random state": torch.random.get_rng_state().numpy().tobytes(),
        "numpy's random state": (drawn[1].tobytes(), drawn[2]),
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
    """The same of a model."""
    parameters = dict(model.named_parameters())
    return {
        "gradients": [name for name, parameter in parameters.items() if parameter.grad is not None],
        "parameters that want gradients": [
            name for name, parameter in parameters.items() if parameter.requires_grad
        ],
        "dtypes": {str(parameter.dtype) for parameter in parameters.values()},
        "training mode": [name for name, module in model.named_modules() if module.training],
    }


def hooks(model: Any) -> dict[int, int]:
    """How many hooks each module has, by its id."""
    return {id(module): _hooks(module) for module in model.modules()}


def hooked(model: Any, before: dict[int, int]) -> list[str]:
    """The modules with another number of hooks than ``before``."""
    return [
        name
        for name, module in model.named_modules()
        if _hooks(module) != before.get(id(module), 0)
    ]


def _hooks(module: torch.nn.Module) -> int:
    return sum(len(getattr(module, kind)) for kind in _HOOKS)


@contextmanager
def no_network() -> Iterator[None]:
    """Within, every connection and every look-up of a host's name is a broken promise."""

    def refuse(*arguments: Any, **_: Any) -> Any:
        raise BrokenPromiseError(
            f"asks the network: {arguments[-1] if arguments else 'a connection'}"
        )

    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> Any:
        return connect(self, address) if self.family == socket.AF_UNIX else refuse(address)

    with (
        mock.patch.object(socket.socket, "connect", local_only),
        mock.patch.object(socket, "getaddrinfo", refuse),
    ):
        yield
