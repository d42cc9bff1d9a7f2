"""What a method may leave on its model besides pruned weights: hooks, gradients, training mode, NaN.

A hook that stays changes the outputs and is lost when the model is saved: what would be measured is not what anybody
gets. Nobody can tell a hook that is part of the method from one that was forgotten, so the cell fails and names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from prunebench.errors import PrunebenchError
from prunebench.isolation.process_guard import Flags

KINDS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
LIBRARIES = ("transformers", "accelerate", "peft")
"""They put hooks of their own on modules, to record outputs or to place weights, and leave them there."""


class Traces:
    """The state of a model before foreign code changes it; ``who`` is 'the method', for example."""

    def __init__(self, model: Any, who: str) -> None:
        self._who = who
        self._hooks = {id(hook) for _, hook in _hooks(model)}
        self._dtypes = {parameter.dtype for parameter in model.parameters()}

    def check(self, model: Any, flags: Flags) -> None:
        """Put modes and gradients right, name what was wrong in ``flags``.

        Raises PrunebenchError for a hook that was left behind and for a weight that is not finite.
        """
        for path, hook in _hooks(model):
            if self._left(hook):
                raise PrunebenchError(
                    f"{self._who} left a hook on {path or 'the model'}: {_name(hook)} of {_origin(hook)}",
                    hint="remove every handle before the method returns, and put what the model needs into its weights",
                )
        if name := first_not_finite(model):
            raise PrunebenchError(
                f"{name}: some weights are not finite",
                hint="the method divides by zero or overflows there; try it in float32",
            )
        self._tidy(model, flags)
        dtypes = {parameter.dtype for parameter in model.parameters()}
        if new := dtypes - self._dtypes:
            flags.add(
                self._who,
                f"left weights as {', '.join(sorted(map(str, new)))}; they are measured like that",
            )

    def restore(self, model: Any, flags: Flags) -> None:
        """The same for code that had nothing to change: hooks that it left are taken off."""
        for module in model.modules():
            for kind in KINDS:
                hooks = getattr(module, kind, None) or {}
                for number, hook in list(hooks.items()):
                    if self._left(hook):
                        del hooks[number]
                        flags.add(
                            self._who, f"left a hook, {_name(hook)} of {_origin(hook)}; removed"
                        )
        self._tidy(model, flags)

    def _left(self, hook: Callable[..., Any]) -> bool:
        return id(hook) not in self._hooks and _origin(hook).partition(".")[0] not in LIBRARIES

    def _tidy(self, model: Any, flags: Flags) -> None:
        if any(module.training for module in model.modules()):
            flags.add(self._who, "left the model in training mode; restored")
            model.eval()
        learning = [
            parameter
            for parameter in model.parameters()
            if parameter.requires_grad or parameter.grad is not None
        ]
        if learning:
            flags.add(self._who, f"left gradients on {len(learning)} parameters; removed")
            for parameter in learning:
                parameter.grad = None
                parameter.requires_grad = False


@torch.no_grad()
def first_not_finite(model: Any) -> str | None:
    """The path of the first parameter that holds NaN or infinity, if there is one. What is on the meta device holds nothing."""
    for name, weight in model.named_parameters():
        if weight.numel() and weight.is_floating_point() and not weight.is_meta:
            low, high = torch.aminmax(weight)  # NaN comes through; half the time of isfinite on all
            if not bool(torch.isfinite(high) & torch.isfinite(low)):
                return str(name)
    return None


def _hooks(model: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    for path, module in model.named_modules():
        for kind in KINDS:
            for hook in (getattr(module, kind, None) or {}).values():
                yield path, hook


def _plain(hook: Any) -> Any:
    """The function behind partial objects and bound methods, else the class of the callable."""
    while isinstance(hook, partial):
        hook = hook.func
    hook = getattr(hook, "__func__", hook)
    return hook if hasattr(hook, "__qualname__") else type(hook)


def _origin(hook: Any) -> str:
    return str(getattr(_plain(hook), "__module__", None) or "an unknown module")


def _name(hook: Any) -> str:
    return str(_plain(hook).__qualname__)
