"""Where the weights of a timed model lie in memory: side by side, on whole huge pages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import torch
from torch import nn

HUGE_PAGE_BYTES = 2 << 20
"""Of Linux on x86 and Arm."""
BLOCK_BYTES = 32 << 20
"""Weights of this size stay where they are; smaller ones are put together into such blocks."""
ALIGNMENT = 64
"""Bytes of a cache line, and of the widest registers."""


def put_side_by_side(model: Any) -> None:
    """Move the small weights of a model on the CPU into blocks, in the order of its modules.

    A matrix below 2 MiB gets no huge page of its own, and a larger one none for its last part. On
    small pages the products of a 135M model take a sixth longer, and two equal models differ. The
    parameters become views of the blocks; a second call changes nothing. One block more than the
    model is in memory meanwhile. Parameters that share memory stay as they are.
    """
    for parameters in _blocks(model):
        size = sum(_rounded(each.nbytes, ALIGNMENT) for each in parameters)
        copies = SideBySide(size)
        for each in parameters:
            each.data = copies.copy(each.data)


class SideBySide:
    """Copies of weights, on the CPU, in blocks of ``block_bytes`` (None: `BLOCK_BYTES`)."""

    def __init__(self, block_bytes: int | None = None) -> None:
        self._block_bytes = BLOCK_BYTES if block_bytes is None else block_bytes
        self._block = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def copy(self, data: torch.Tensor) -> torch.Tensor:
        """A contiguous copy of ``data``, of any layout, beside those before it.

        One as large as a block has memory of its own. A block lives as long as a copy in it.
        """
        # Not inference tensors, even if the caller only infers: weights could not be trained
        # afterwards, nor a block be filled in another mode.
        with torch.inference_mode(mode=False), torch.no_grad():
            if data.nbytes >= BLOCK_BYTES:
                place = _on_huge_pages(data.nbytes)
            else:
                if self._used + data.nbytes > self._block.nbytes:
                    self._block, self._used = _on_huge_pages(self._block_bytes), 0
                place = self._block[self._used : self._used + data.nbytes]
                self._used += _rounded(data.nbytes, ALIGNMENT)
            return place.view(data.dtype).view(data.shape).copy_(data)


def _on_huge_pages(size: int) -> torch.Tensor:
    """An uninitialised block, uint8 [size], that begins where a huge page does.

    Torch aligns memory to small pages only: what is in front of the first huge page and behind the
    last one would lie on those. The last page is whole, too. A page more is reserved, and what is
    left of it never touched.
    """
    memory = torch.empty(_rounded(size, HUGE_PAGE_BYTES) + HUGE_PAGE_BYTES, dtype=torch.uint8)
    start = -memory.data_ptr() % HUGE_PAGE_BYTES
    return memory[start : start + size]


def _rounded(size: int, to: int) -> int:
    """The next multiple of ``to``."""
    return -(-size // to) * to


def _blocks(model: Any) -> Iterator[list[nn.Parameter]]:
    """The parameters that can be moved, by the block they go into.

    Those of one attention or one MLP go together, so that queries, keys and values are neighbours:
    `lean` would copy them otherwise, to wherever there is room.
    """
    block: list[nn.Parameter] = []
    size = 0
    for group in _groups(model):
        together = sum(each.nbytes for each in group)
        parts = [group] if together <= BLOCK_BYTES else [[each] for each in group]
        for part in parts:
            more = sum(each.nbytes for each in part)
            if size + more > BLOCK_BYTES and block:
                yield block
                block, size = [], 0
            block += part
            size += more
    if block:
        yield block


def _groups(model: Any) -> Iterator[list[nn.Parameter]]:
    """The parameters that can be moved, by the module that holds those with the weights."""
    plain = {name: each for name, each in model.named_parameters() if _is_plain(each.data)}
    users = Counter(each.untyped_storage().data_ptr() for each in plain.values())

    def moves(each: nn.Parameter) -> bool:
        storage = each.untyped_storage()
        alone = users[storage.data_ptr()] == 1 and storage.nbytes() == each.nbytes
        return alone and 0 < each.nbytes < BLOCK_BYTES and each.is_contiguous()

    moved = ((name, each) for name, each in plain.items() if moves(each))
    for _, named in groupby(moved, lambda one: one[0].rsplit(".", 2)[0]):
        yield [each for _, each in named]


def _is_plain(data: torch.Tensor) -> bool:
    """Whether it is in the memory of the CPU, and stores its numbers as they are."""
    return type(data) is torch.Tensor and data.device.type == "cpu" and data.layout == torch.strided
