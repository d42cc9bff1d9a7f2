"""Check what a plugin left on its model besides pruned weights: hooks, gradients, modes, NaN.

A hook that stays changes the outputs, but is lost when the model is saved: the benchmark would
measure something that nobody can load. Whether a hook belongs to the method or was forgotten
cannot be told apart, so the cell fails and names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from prunebench.errors import PrunebenchError
from prunebench.isolation.flags import Flags

KINDS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# They put hooks of their own on modules, to record outputs or to move weights, and leave them.
LIBRARIES = ("transformers", "accelerate", "peft")


class ModelGuard:
    """Remembers the hooks and dtypes of a model before a plugin gets it.

    ``who`` names the plugin in messages, for example 'the method'.
    """

    def __init__(self, model: Any, who: str) -> None:
        self._who = who
        self._hooks = {id(hook) for _, hook in _hooks(model)}
        self._dtypes = {parameter.dtype for parameter in model.parameters()}

    def check(self, model: Any, flags: Flags) -> None:
        """Reset mode and gradients and flag what was wrong; for plugins that change the model.

        Raises PrunebenchError for a hook that was left and for a weight that is not finite.
        """
        for path, hook in _hooks(model):
            if self._is_left(hook):
                raise PrunebenchError(
                    f"{self._who} left a hook on {path or 'the model'}: "
                    f"{_name(hook)} of {_origin(hook)}",
                    hint="remove every handle before the method returns, and put what the model "
                    "needs into its weights",
                )
        if name := first_not_finite(model):
            raise not_finite(name)
        self._reset(model, flags)
        new = {
            name: parameter.dtype
            for name, parameter in model.named_parameters()
            if parameter.dtype not in self._dtypes
        }
        if new:
            kinds, first = ", ".join(sorted(set(map(str, new.values())))), next(iter(new))
            others = f" and {len(new) - 1} others" if len(new) > 1 else ""
            flags.add(self._who, f"left {first}{others} as {kinds}; they are measured like that")

    def restore(self, model: Any, flags: Flags) -> None:
        """Reset mode and gradients and remove new hooks; for plugins that must change nothing."""
        for module in model.modules():
            for kind in KINDS:
                hooks = getattr(module, kind, None) or {}
                for number, hook in list(hooks.items()):
                    if self._is_left(hook):
                        del hooks[number]
                        flags.add(
                            self._who, f"left a hook, {_name(hook)} of {_origin(hook)}; removed"
                        )
        self._reset(model, flags)

    def _is_left(self, hook: Callable[..., Any]) -> bool:
        return id(hook) not in self._hooks and _origin(hook).partition(".")[0] not in LIBRARIES

    def _reset(self, model: Any, flags: Flags) -> None:
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


def first_not_finite(model: Any) -> str | None:
    """The path of the first parameter that holds NaN or infinity, or None."""
    for name, weight in model.named_parameters():
        # A weight on the meta device holds no values.
        if weight.numel() and weight.is_floating_point() and not weight.is_meta:
            # aminmax propagates NaN, and takes half the time of isfinite on every element.
            low, high = torch.aminmax(weight.detach())
            if not bool(torch.isfinite(high) & torch.isfinite(low)):
                return str(name)
    return None


def not_finite(name: str) -> PrunebenchError:
    """The error for a parameter that holds NaN or infinity."""
    return PrunebenchError(
        f"{name}: some weights are not finite",
        hint="the method divides by zero or overflows there; try it in float32",
    )


def _hooks(model: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    for path, module in model.named_modules():
        for kind in KINDS:
            for hook in (getattr(module, kind, None) or {}).values():
                yield path, hook


def _unwrap(hook: Any) -> Any:
    """The function inside partial objects and bound methods, or the class of a callable object."""
    while isinstance(hook, partial):
        hook = hook.func
    hook = getattr(hook, "__func__", hook)
    return hook if hasattr(hook, "__qualname__") else type(hook)


def _origin(hook: Any) -> str:
    return str(getattr(_unwrap(hook), "__module__", None) or "an unknown module")


def _name(hook: Any) -> str:
    return str(_unwrap(hook).__qualname__)
