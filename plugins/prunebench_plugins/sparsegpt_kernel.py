"""SparseGPT's sweep over a few columns as one function that a compiler makes a kernel of.

Every row goes through the columns by itself. Written with one tensor for each column, all steps are
pointwise: a compiler joins them, so that the columns of a row stay in registers and nothing waits
between two columns. The plain loop of `sparsegpt` calls two kernels for each column instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch

STRIDE = 16
"""Columns of one kernel. The number of its steps grows with the square, and so does compiling."""


class Kernel:
    """`swept` over whole blocks of columns, compiled at its first use.

    If that fails, ``refused`` says why, and the caller should use code that is faster without a
    compiler. `torch.compile` uses Triton on a GPU, and a C++ compiler on a CPU.
    """

    def __init__(self) -> None:
        self.refused: str | None = None

    @staticmethod
    def takes(of: int | None) -> bool:
        """Whether groups of ``of`` columns fit into the kernel; None: the mask is there already."""
        return of is None or of <= STRIDE

    def prune_block(
        self, block: torch.Tensor, factor: torch.Tensor, chosen: torch.Tensor, of: int | None
    ) -> torch.Tensor:
        """Prune a block of columns [width, rows] in place; return (w - q) / U_jj, [width, rows].

        ``factor``: U of the block, [width, width]. ``chosen``: the weights to remove, bool [width,
        rows]; or how many to remove from each ``of`` columns of a row, int8 [rows].
        """
        errors = torch.empty_like(block)
        stride = STRIDE if of is None else of * (STRIDE // of)
        with _own_environment():
            for start in range(0, len(block), stride):
                part = slice(start, min(start + stride, len(block)))
                # Contiguous: the layout decides whether the same kernel can be used again
                upper = factor[part, part].contiguous()
                gone = chosen[part] if of is None else chosen
                block[part], errors[part] = self._swept(block[part], upper, gone, of)
                block[part.stop :].addmm_(factor[part, part.stop :].t(), errors[part], alpha=-1)
        return errors

    def _swept(
        self, columns: torch.Tensor, factor: torch.Tensor, chosen: torch.Tensor, of: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.refused is None:
            try:
                # Otherwise the first number of rows would be compiled by itself
                for each in (columns, chosen):
                    torch._dynamo.maybe_mark_dynamic(each, each.dim() - 1)
                return _compiled()(columns, factor, chosen, of)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # compilers raise anything
                reason = str(error).strip().partition("\n")[0]
                self.refused = f"{type(error).__name__}: {reason}"
        return swept(columns, factor, chosen, of)


def swept(
    columns: torch.Tensor, factor: torch.Tensor, chosen: torch.Tensor, of: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``columns`` [stride, rows] after pruning, and (w - q) / U_jj, [stride, rows].

    ``factor``: U of these columns, [stride, stride]. ``chosen`` and ``of``: see
    `Kernel.prune_block`; of equal costs in a group the lower index is removed.
    """
    rows = list(columns.unbind())
    gone = [] if of else list(chosen.unbind())
    pruned, errors = [], []
    for j in range(len(rows)):
        if of and j % of == 0:
            costs = [rows[k].square() / factor[k, k].square() for k in range(j, j + of)]
            gone += [rank < chosen for rank in _ranks(costs)]
        # 1 / U_jj for weights to remove, otherwise 0, as in the plain loop
        error = rows[j] * (gone[j] * factor[j, j].reciprocal())
        errors.append(error)
        pruned.append(torch.where(gone[j], 0.0, rows[j]))
        for k in range(j + 1, len(rows)):
            rows[k] = rows[k] - factor[j, k] * error
    return torch.stack(pruned), torch.stack(errors)


def _ranks(costs: list[torch.Tensor]) -> list[torch.Tensor]:
    """The rank of each cost among those of its row, int8 [rows]; of equal ones by index."""
    ranks = [torch.zeros_like(cost, dtype=torch.int8) for cost in costs]
    for later in range(len(costs)):
        for earlier in range(later):
            smaller = costs[later] < costs[earlier]
            ranks[earlier] = ranks[earlier] + smaller
            ranks[later] = ranks[later] + ~smaller
    return ranks


@cache
def _compiled() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """One for the process, for any number of rows; other sizes are compiled anew."""
    import torch._inductor.config as settings  # here, because it takes a second

    compiled = torch.compile(swept, fullgraph=True)
    # In this thread alone: a pool of compilers would share the cores with what is measured later.
    return settings.patch(compile_threads=1)(compiled)  # type: ignore[no-any-return]


@contextmanager
def _own_environment() -> Iterator[None]:
    """Remove the variables that a compiler adds in the block."""
    before = set(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before:
            del os.environ[name]
