"""Which modules of a layer read the same tensor: seen in one forward that computes nothing.

A copy of the model on the meta device has shapes but no numbers, so a forward of a model of any
size takes milliseconds and no memory. Modules that get the very same tensor object share their
input; no table of names says so.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from prunebench.errors import PrunebenchError

Reads = tuple[tuple[str, int], ...]
"""(path in the layer, number of the tensor that it reads) in the order of the first calls."""
_TOKENS = 8
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
_OVERRIDES = ("forward", "_old_forward", "_hf_hook")
"""What accelerate sets on a module to move it between devices."""


def shared_reads(model: Any, decoder: str, layers: Sequence[Mapping[str, Any]]) -> list[Reads]:
    """For each layer, what its modules read; ``layers`` has the modules to watch, by path.

    Modules that a forward of plain text does not run are left out. Raises PrunebenchError if the
    model cannot run, with the reason.
    """
    names = {module: name for name, module in model.named_modules()}
    watched = [{path: names[module] for path, module in each.items()} for each in layers]
    try:
        return _watch(on_meta(model), decoder, watched, _pretended())
    except Exception as error:
        device = next(model.parameters()).device
        if device.type == "meta":
            raise PrunebenchError(
                f"{type(model).__name__} does not run without its weights "
                f"({type(error).__name__}: {first_line(error)})",
                hint="load the model as a whole",
            ) from error
    try:
        return _watch(model, decoder, watched, torch.no_grad())
    except Exception as error:
        raise PrunebenchError(
            f"{type(model).__name__} does not run on {_TOKENS} tokens "
            f"({type(error).__name__}: {first_line(error)})",
            hint="only models that run on plain token ids can be pruned",
        ) from error


def run_on_meta(model: Any, decoder: str) -> None:
    """Run a model that is on the meta device, with a KV cache. Raises what its code raises."""
    ids = torch.zeros(1, _TOKENS, dtype=torch.long, device="meta")
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    with torch.no_grad(), torch.device("meta"), _pretended():
        model.get_submodule(decoder)(ids, use_cache=True)


def on_meta(model: Any) -> Any:
    """A copy of the model on the meta device, without hooks; it takes no memory for weights."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers, module.__dict__):
            for tensor in table.values():
                if isinstance(tensor, torch.nn.Parameter):
                    memo[id(tensor)] = torch.nn.Parameter(tensor.to("meta"), requires_grad=False)
                elif isinstance(tensor, torch.Tensor):
                    memo[id(tensor)] = tensor.to("meta")
        for name in _HOOKS:
            memo[id(module.__dict__[name])] = OrderedDict()
        for name in _OVERRIDES:
            if name in module.__dict__:
                memo[id(module.__dict__[name])] = None
    copied = copy.deepcopy(model, memo)
    for module in copied.modules():
        for name in _OVERRIDES:
            if module.__dict__.get(name, ...) is None:
                del module.__dict__[name]
    if hasattr(copied, "set_experts_implementation"):
        copied.set_experts_implementation("eager")  # others want a certain dtype
    return copied


def _pretended() -> Any:
    """Answers for numbers that tensors on the meta device do not have, so that a forward goes on.

    What the forward computes is of no interest, only which tensor goes where.
    """
    # Here: plugins import this module before torch is loaded, and a base class would load it.
    from torch.utils._python_dispatch import TorchDispatchMode

    aten = torch.ops.aten

    class Pretended(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            del types
            first = args[0] if args else None
            if isinstance(first, torch.Tensor) and first.is_meta:
                if func is aten._local_scalar_dense.default:
                    return first.dtype == torch.bool or 1
                if func is aten.nonzero.default:  # as if there were one
                    return torch.zeros(1, first.dim(), dtype=torch.long, device="meta")
            return func(*args, **(kwargs or {}))

    return Pretended()  # type: ignore[no-untyped-call]


def _watch(
    model: Any, decoder: str, watched: Sequence[Mapping[str, str]], mode: Any
) -> list[Reads]:
    """`shared_reads`: ``watched`` has paths in the model by paths in the layer."""
    found: list[dict[str, int]] = [{} for _ in watched]
    tensors: dict[int, tuple[int, torch.Tensor]] = {}  # kept alive: an id must not be used again
    handles = []
    for into, paths in zip(found, watched, strict=True):
        for path, name in paths.items():

            def hook(
                _: Any, args: Any, kwargs: Any, path: str = path, into: dict[str, int] = into
            ) -> None:
                tensor = args[0] if args else next(iter(kwargs.values()))
                number, _kept = tensors.setdefault(id(tensor), (len(tensors), tensor))
                into.setdefault(path, number)

            module = model.get_submodule(name)
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    device = next(model.parameters()).device
    ids = torch.zeros(1, _TOKENS, dtype=torch.long, device=device)
    try:
        with torch.no_grad(), torch.device(device), mode:
            model.get_submodule(decoder)(ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return [tuple(each.items()) for each in found]


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
