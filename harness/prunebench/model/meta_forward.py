"""Which modules of a layer read the same tensor: seen in one forward that computes nothing.

A copy of the model on the meta device has shapes but no numbers, so a forward of a model of any
size takes milliseconds and no memory. Modules that get the very same tensor object share their
input; no table of names says so.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import torch

from prunebench.errors import PrunebenchError

Reads = tuple[tuple[str, int], ...]
"""(path in the layer, number of the tensor that it reads) in the order of the first calls."""
T = TypeVar("T")
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


class LayerFlow(NamedTuple):
    """How hidden states go through the layers of a model."""

    lengths: tuple[int, ...]
    """Length of the tuple that each layer returns; 0: the tensor itself."""
    fault: str | None
    """Why layers cannot be run one by one; None if each reads what the one before it made."""


def shared_reads(
    model: Any, decoder: str, layers: Sequence[Mapping[str, Any]], alike: str | None = None
) -> list[Reads]:
    """For each layer, what its modules read; ``layers`` has the modules to watch, by path.

    Modules that a forward of plain text does not run are left out. ``alike``: the path of the list
    of layers if all of them read as the first one does; then only that one runs, if the model can
    run without the others. Raises PrunebenchError if the model cannot run, with the reason.
    """
    names = {module: name for name, module in model.named_modules()}
    watched = [{path: names[module] for path, module in each.items()} for each in layers]
    if alike is not None:
        with suppress(Exception):  # the model's code may need all layers
            shorter = on_meta(model, first_of=alike)
            first = _forward(
                shorter, decoder, lambda seen: _watch_reads(seen, watched[:1]), _pretended()
            )
            if first[0]:
                return [tuple(first[0].items())] * len(layers)
    found = forward_once(model, decoder, lambda seen: _watch_reads(seen, watched))
    return [tuple(each.items()) for each in found]


def layer_flow(model: Any, decoder: str, layers: str) -> LayerFlow:
    """How hidden states go from layer to layer; ``layers`` is the path of their list.

    Raises PrunebenchError if the model cannot run, with the reason.
    """
    calls = forward_once(model, decoder, lambda seen: _watch_calls(seen.get_submodule(layers)))
    fault = None
    # Identity again: what a layer reads besides its hidden states must not be made by another one,
    # or the arguments that were captured once would be stale after pruning.
    outputs: set[int] = set()  # tensors that layers have made so far, by their identity
    for index, call in enumerate(calls):
        if call is None:
            fault = fault or f"layer {index} does not run"
        elif index and calls[index - 1] is not None:
            before = calls[index - 1]
            if before is not None and call.tensors[:1] != before.outputs[:1]:
                fault = fault or f"layer {index} reads something else than layer {index - 1} made"
            if outputs & set(call.tensors[1:]):
                fault = fault or f"layer {index} reads more than the hidden states of others"
        outputs |= set(call.outputs) if call is not None else set()
    return LayerFlow(tuple(0 if call is None else call.length for call in calls), fault)


def forward_once(model: Any, decoder: str, watch: Callable[[Any], tuple[list[Any], T]]) -> T:
    """What ``watch`` saw of one forward: on the meta device if that works, else in the model.

    ``watch`` puts hooks on the modules of the model that it gets, and returns their handles and
    what they fill. Raises PrunebenchError if the model cannot run, with the reason.
    """
    try:
        return _forward(on_meta(model), decoder, watch, _pretended())
    except Exception as error:
        if next(model.parameters()).device.type == "meta":
            raise PrunebenchError(
                f"{type(model).__name__} does not run without its weights "
                f"({type(error).__name__}: {first_line(error)})",
                hint="load the model as a whole",
            ) from error
    try:
        return _forward(model, decoder, watch, torch.no_grad())
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


def on_meta(model: Any, first_of: str | None = None) -> Any:
    """A copy of the model on the meta device, without hooks; it takes no memory for weights.

    ``first_of``: the path of a list of modules of which the copy has only the first one.
    """
    # `deepcopy` looks its results up here first, so tensors, hooks and what accelerate sets are
    # replaced instead of copied.
    memo: dict[int, Any] = {}
    if first_of is not None:
        memo |= {id(each): None for each in model.get_submodule(first_of)[1:]}
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
    if first_of is not None:
        del copied.get_submodule(first_of)[1:]
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


def _forward(model: Any, decoder: str, watch: Callable[[Any], tuple[list[Any], T]], mode: Any) -> T:
    handles, found = watch(model)
    device = next(model.parameters()).device
    ids = torch.zeros(1, _TOKENS, dtype=torch.long, device=device)
    try:
        with torch.no_grad(), torch.device(device), mode:
            model.get_submodule(decoder)(ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _watch_reads(
    model: Any, watched: Sequence[Mapping[str, str]]
) -> tuple[list[Any], list[dict[str, int]]]:
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
    return handles, found


class _Call(NamedTuple):
    """What one layer was called with and returned, in a forward."""

    tensors: list[int]
    """Identities of its arguments, the hidden states first."""
    outputs: list[int]
    length: int
    alive: Any
    """Everything behind the identities: an id must not be used again."""


def _watch_calls(layers: Any) -> tuple[list[Any], list[_Call | None]]:
    found: list[_Call | None] = [None] * len(layers)
    handles = []
    for index, layer in enumerate(layers):

        def hook(_: Any, args: Any, kwargs: Any, output: Any, index: int = index) -> None:
            made = output if isinstance(output, tuple | list) else (output,)
            hidden = kwargs.get("hidden_states") if not args else args[0]
            others = [*args[1:], *(each for each in kwargs.values() if each is not hidden)]
            tensors = [hidden, *(each for each in others if isinstance(each, torch.Tensor))]
            found[index] = _Call(
                list(map(id, tensors)),
                [id(each) for each in made if isinstance(each, torch.Tensor)],
                0 if made is not output else len(made),
                (args, kwargs, output),
            )

        handles.append(layer.register_forward_hook(hook, with_kwargs=True))
    return handles, found


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
