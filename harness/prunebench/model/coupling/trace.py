"""What the modules of a layer read and give in one forward of a small model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

Address = tuple[int, int]
"""Of a tensor's memory: where it begins, and how many elements it has. A reshaped view has the same
address as the tensor that it shows, so that both count as one."""


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module: the tensors that went in, by position or name, and those that came out.

    ``path`` starts at the layer.
    """

    path: str
    module: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any

    @property
    def inputs(self) -> list[torch.Tensor]:
        return list(tensors((*self.args, *self.kwargs.values())))

    @property
    def outputs(self) -> list[torch.Tensor]:
        return list(tensors(self.output))

    def reads(self, address: Address) -> bool:
        return any(address_of(tensor) == address for tensor in self.inputs)


@dataclass
class LayerTrace:
    """The calls of one layer's modules, in the order in which they ended; the layer is ''."""

    calls: list[ModuleCall] = field(default_factory=list)

    def of(self, path: str) -> ModuleCall | None:
        """The first call of the module at ``path``, or None if it was not called."""
        return next((call for call in self.calls if call.path == path), None)

    def inside(self, path: str) -> list[ModuleCall]:
        """Calls of the module at ``path`` and of the modules in it."""
        return [each for each in self.calls if is_at(each.path, path)]


def is_inside(path: str, parent: str) -> bool:
    return not parent or path.startswith(f"{parent}.")


def is_at(path: str, parent: str) -> bool:
    """Whether ``path`` is ``parent`` or inside it."""
    return path == parent or is_inside(path, parent)


def address_of(tensor: torch.Tensor) -> Address:
    return tensor.data_ptr(), tensor.numel()


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """The floating-point tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, tuple | list):
        for each in value:
            yield from tensors(each)
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))


def trace(model: Any, layers: torch.nn.ModuleList, tokens: torch.Tensor) -> list[LayerTrace]:
    """Run ``model`` once and note the calls in each layer.

    ``tokens``: int64 [batch, length]. The calls hold their tensors, so that no two tensors of the
    run have one address.
    """
    traces = [LayerTrace() for _ in layers]
    handles = []
    for layer, found in zip(layers, traces, strict=True):
        for path, module in layer.named_modules():
            note: Any = partial(_note, found, path)
            handles.append(module.register_forward_hook(note, with_kwargs=True))
    try:
        with torch.no_grad():
            model(input_ids=tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return traces


def _note(
    found: LayerTrace, path: str, module: torch.nn.Module, args: Any, kwargs: Any, output: Any
) -> None:
    found.calls.append(ModuleCall(path, module, args, kwargs, output))
