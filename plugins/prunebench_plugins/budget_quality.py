"""What each variant costs in quality, with all else as it is: one block is changed at a time.

A variant is tried without surgery: the linear that reads a block's groups gets zeros in the columns
of those that go, which gives the same outputs as smaller matrices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import torch

from prunebench import PrunebenchError, anatomy

if TYPE_CHECKING:
    from prunebench import Block, Context
    from prunebench_plugins.budget_variants import Item, Variant

Cost = Literal["kl", "loss"]


class Trials:
    """The model with some variants in place of its blocks, over the calibration windows.

    Within `restored` the model may have other weights; afterwards it has its own again.
    ``tried`` is called after each variant.
    """

    def __init__(
        self,
        model: Any,
        context: Context,
        items: Sequence[Item],
        cost: Cost,
        tried: Callable[[], None],
    ) -> None:
        self.forward = context.partial_forward(model)
        self._parts = anatomy(model)
        self._items = list(items)
        self._cost = cost
        self._tried = tried
        self.current: dict[Block, Variant] = {item.block: item.variants[0] for item in items}
        self._saved: dict[Block, torch.Tensor] = {}
        """The dense columns of the groups that the current variant loses."""
        self._hooks: dict[Block, Any] = {}
        # Before any column is zero: a bias is computed from the dense weights.
        self._biases = {
            (item.block, variant.groups): item.bias(self._parts, variant)
            for item in items
            for variant in item.variants
        }
        self._dense = self._ends() if cost == "kl" else []
        self._at_once = self.forward.variants_at_once

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Give the model its dense weights back when the block ends."""
        try:
            yield
        finally:
            for item in self._items:
                self.set(item, item.variants[0])

    def set(self, item: Item, variant: Variant) -> None:
        """Let the model have this variant."""
        before, self.current[item.block] = self.current[item.block], variant
        if item.reader is None:
            return  # kept or removed as a whole: `_run` leaves it out
        layer = self._parts.layers[item.block.layer]
        weight = self._parts.linears(layer)[item.reader].weight  # [out, in]
        if item.block in self._saved:
            columns = _columns(before, weight)
            weight[:, columns] = self._saved.pop(item.block)
        if item.block in self._hooks:
            self._hooks.pop(item.block).remove()
        if variant.groups in {0, item.present}:
            return
        columns = _columns(variant, weight)
        self._saved[item.block] = weight[:, columns]  # indexing copies
        weight[:, columns] = 0
        # A hook, because a linear without a bias would need a new parameter for each variant.
        bias = self._biases[item.block, variant.groups]
        if bias is not None:
            self._hooks[item.block] = layer.get_submodule(item.reader).register_forward_hook(
                lambda _, __, output: output + bias.to(output)
            )

    def costs(self) -> tuple[float, dict[Block, list[float]]]:
        """The cost of the current model, and by how much each variant in its place raises it.

        In nats a token: KL from the dense model, or the loss of the next token.
        """
        found: dict[Block, list[float]] = {
            item.block: [0.0] * len(item.variants) for item in self._items
        }
        states = self.forward.start()
        for layer in range(self.forward.layers):
            here = [item for item in self._items if item.block.layer == layer]
            for batch, state in enumerate(states):
                self._try(here, layer, batch, state, found)
            states = [self._run(layer, batch, state) for batch, state in enumerate(states)]
        base = self._sum(states)
        for item in self._items:
            now = item.place(self.current[item.block])
            found[item.block] = [
                0.0 if index == now else (cost - base) / self.forward.targets
                for index, cost in enumerate(found[item.block])
            ]
        return base / self.forward.targets, found

    def cost(self) -> float:
        """That of the current model, in nats a token."""
        return self._sum(self._ends()) / self.forward.targets

    def _try(
        self,
        items: Sequence[Item],
        layer: int,
        batch: int,
        state: torch.Tensor,
        found: dict[Block, list[float]],
    ) -> None:
        """Add to ``found`` what the variants of one layer cost in one batch."""
        places: list[tuple[Block, int]] = []
        ends: list[torch.Tensor] = []
        changed = self._changed(items, layer, batch, state)
        while group := list(islice(changed, self._at_once)):
            places += [place for place, _ in group]
            ends += self._climbed(layer, batch, [states for _, states in group])
        # All variants of the layer at once, so that the dense logits are computed once for them.
        for (block, index), cost in zip(places, self._batch_costs(batch, ends), strict=True):
            found[block][index] += _finite(
                cost, f"with another {block.kind} in layer {block.layer}"
            )

    def _changed(
        self, items: Sequence[Item], layer: int, batch: int, state: torch.Tensor
    ) -> Iterator[tuple[tuple[Block, int], torch.Tensor]]:
        """Each variant of one layer, as block and number, and what the layer puts out with it."""
        for item in items:
            now = self.current[item.block]
            for index, variant in enumerate(item.variants):
                if variant is now:
                    continue
                self.set(item, variant)
                states = self._run(layer, batch, state)
                self.set(item, now)
                yield (item.block, index), states

    def _climbed(
        self, layer: int, batch: int, variants: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """The last layer's outputs of variants of one layer, from what that layer put out.

        The layers above run as they are now, so the variants go through them together.
        """
        states = variants[0] if len(variants) == 1 else torch.cat(list(variants))
        for above in range(layer + 1, self.forward.layers):
            states = self._run(above, batch, states)
        for _ in variants:
            self._tried()
        return torch.split(states, len(variants[0]))

    def _batch_costs(self, batch: int, ends: Sequence[torch.Tensor]) -> list[float]:
        """Sums over a batch, for several last layers' outputs."""
        if self._cost == "kl":
            return self.forward.kl(batch, self._dense[batch], ends)
        return [self.forward.nll(batch, end) for end in ends]

    def _sum(self, ends: Sequence[torch.Tensor]) -> float:
        return _finite(
            math.fsum(self._batch_costs(batch, [end])[0] for batch, end in enumerate(ends)),
            "of the model as it is",
        )

    def _ends(self) -> list[torch.Tensor]:
        """The last layer's output of every batch."""
        states = self.forward.start()
        for layer in range(self.forward.layers):
            states = [self._run(layer, batch, state) for batch, state in enumerate(states)]
        return states

    def _run(self, layer: int, batch: int, state: torch.Tensor) -> torch.Tensor:
        gone = [
            block.kind
            for block, variant in self.current.items()
            if block.layer == layer and variant.groups == 0
        ]
        return self.forward.run(layer, batch, state, gone)


def _columns(variant: Variant, weight: torch.Tensor) -> torch.Tensor:
    """The columns of the groups that the variant loses, bool [in]."""
    gone = variant.gone.repeat_interleave(weight.shape[1] // len(variant.gone))
    return gone.to(weight.device)


def _finite(cost: float, what: str) -> float:
    if math.isfinite(cost):
        return cost
    raise PrunebenchError(
        f"the cost {what} is not finite on the calibration windows",
        hint="use float32 or bfloat16, or look for a damaged checkpoint",
    )
