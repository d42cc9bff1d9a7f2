"""The logits of a model's routers while it runs: look at them, or mask experts in them.

Families write their routers in many ways: as a linear, as a parameter that is converted to float32
first, behind a small MLP. All multiply something by a weight with one row for each expert, so the
products of that weight are the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from prunebench.model.mixture import Mixture, tensor_of

Change = Callable[[torch.Tensor], torch.Tensor]
"""From the logits [..., experts and more] to what the router is to see instead."""


class RouterProducts(TorchFunctionMode):
    """Calls a function with the products of some weights, and uses what it returns instead.

    ``changes`` has the function by the weight [experts and more, in].
    """

    def __init__(self, changes: Sequence[tuple[torch.Tensor, Change]]) -> None:
        super().__init__()
        # The weights themselves are kept too: the id of a tensor is its own only as long as it
        # lives.
        self._weights = {id(weight): (weight, len(weight), change) for weight, change in changes}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        out = func(*args, **(kwargs or {}))
        known = next((self._weights[id(each)] for each in args if id(each) in self._weights), None)
        if known is None or not isinstance(out, torch.Tensor) or not out.is_floating_point():
            return out
        weight, rows, change = known
        if args[0] is weight or out.shape in {weight.shape, weight.t().shape}:
            # The weight in another type, or turned: its products are logits as well.
            self._weights[id(out)] = out, rows, change
            return out
        return change(out) if out.shape[-1] == rows else out


@contextmanager
def masked_experts(
    model: Any, mixture: Mixture, kept: Mapping[str, Sequence[int]]
) -> Iterator[None]:
    """Set the routers' logits of all but the ``kept`` experts to minus infinity in the block.

    ``kept``: by path of the module with experts. Biases that a router adds to its scores are set
    too, because a sigmoid gives minus infinity a score of 0, and a bias may be larger than another
    expert's score.
    """
    changes: list[tuple[torch.Tensor, Change]] = []
    biases: list[tuple[torch.Tensor, torch.Tensor]] = []
    for owner, weight in mixture.routers(model).values():
        gone = _gone(mixture, len(weight), kept[owner], weight.device)
        changes.append((weight, lambda out, gone=gone: out.masked_fill(gone, -torch.inf)))  # type: ignore[misc]
    try:
        for name, dim in mixture.rows.items():
            owner, tensor = mixture.owner(name), tensor_of(model, name)
            if "bias" in name and not name.startswith(f"{owner}."):
                gone = _gone(mixture, tensor.shape[dim], kept[owner], tensor.device)
                biases.append((tensor, tensor.detach().clone()))
                tensor.data.masked_fill_(gone, -torch.inf)
        with RouterProducts(changes):
            yield
    finally:
        for tensor, before in biases:
            tensor.data.copy_(before)


def _gone(mixture: Mixture, rows: int, kept: Sequence[int], device: torch.device) -> torch.Tensor:
    """True for the rows that do not stay, bool [rows]."""
    gone = torch.ones(rows, dtype=torch.bool, device=device)
    gone[mixture.staying(rows, kept).to(device)] = False
    return gone
