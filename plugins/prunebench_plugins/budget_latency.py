"""What every variant adds to a generation step, measured on this machine.

Blocks alike are timed together: in a copy of the model all of one kind get the same variant, and
rounds of the copy and of the dense model take turns. The difference of a step, divided by the
number of blocks, is what one of them saves.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from prunebench import Context
from prunebench_plugins.budget_sizes import Sizes
from prunebench_plugins.budget_variants import make

if TYPE_CHECKING:
    from prunebench import Anatomy, Block
    from prunebench_plugins.budget_variants import Item

NANOSECONDS = 1e9


class Shape(NamedTuple):
    """What is timed."""

    batch_size: int
    prompt: int
    new_tokens: int


def latency_of(parts: Anatomy, items: Sequence[Item], context: Context, shape: Shape) -> Sizes:
    """Nanoseconds of a generation step, of the model and of every variant.

    A block that is removed takes none. The times are measured once for a cell: one that is
    interrupted uses the same again. They are in the notes as ``step_seconds``. Raises
    PrunebenchError if something else used the machine.
    """
    alike = _alike(parts, items)
    times = context.remember("step seconds", lambda: _measure(parts, alike, context, shape))
    context.notes["step_seconds"] = times
    of: dict[Block, list[int]] = {}
    for some, savings in zip(alike, times["saved_by_variant"], strict=True):
        whole = max(savings)  # the removed block, of most: so this is the time of the whole one
        sizes = [round((whole - saved) * NANOSECONDS) for saved in savings]
        of |= {item.block: sizes for item in some}
    return Sizes(round(times["dense"] * NANOSECONDS), of)


def latency(dense: Any, model: Any, total: int, context: Context, shape: Shape) -> int:
    """Nanoseconds of the pruned model's step, if the dense one takes ``total``.

    The ratio of both is measured side by side, so that it does not matter when.
    """
    [(theirs, mine)] = context.step_seconds(dense, [model], **shape._asdict())
    return round(total * mine / theirs)


def _alike(parts: Anatomy, items: Sequence[Item]) -> list[list[Item]]:
    """The items whose variants take the same time: of the same kind and shape."""
    found: dict[tuple[Any, ...], list[Item]] = {}
    for item in items:
        layer = parts.layers[item.block.layer]
        block = parts.sub_block(layer, item.block.kind)
        assert block is not None
        modules: list[Any] = [layer.get_submodule(path) for path in block.modules]
        key = (
            item.block.kind,
            type(layer).__name__,
            tuple(variant.groups for variant in item.variants),
            tuple(tuple(each.shape) for module in modules for each in module.parameters()),
            tuple(getattr(module, "sliding_window", None) for module in modules),
        )
        found.setdefault(key, []).append(item)
    return list(found.values())


def _measure(
    parts: Anatomy, alike: Sequence[Sequence[Item]], context: Context, shape: Shape
) -> dict[str, Any]:
    """Seconds of the dense step, and what each variant saves of it, by items that are alike."""
    places = [(items, index) for items in alike for index in range(1, len(items[0].variants))]
    copies = (_with(parts, items, index, context) for items, index in places)
    pairs = context.step_seconds(parts.model, copies, **shape._asdict())
    saved: list[list[float]] = [[] for _ in alike]
    timed = iter(pairs)
    for items, savings in zip(alike, saved, strict=True):
        savings.append(0.0)
        for _ in items[0].variants[1:]:
            # Both are from the same rounds, so that what slows the machine cancels.
            theirs, mine = next(timed)
            savings.append((theirs - mine) / len(_changed(items)))
    return {"dense": median(theirs for theirs, _ in pairs), "saved_by_variant": saved}


def _with(parts: Anatomy, items: Sequence[Item], index: int, context: Context) -> Any:
    """A copy of the model in which all these items but the first have a variant."""
    model = copy.deepcopy(parts.model)
    its = Context(None, context.seed, list(range(len(parts.layers))))
    changed = _changed(items)
    make(model, its, changed, {item.block: item.variants[index] for item in changed})
    return model


def _changed(items: Sequence[Item]) -> Sequence[Item]:
    """All but the first, if there are others: without any attention a KV cache is another thing."""
    return items[1:] or items
