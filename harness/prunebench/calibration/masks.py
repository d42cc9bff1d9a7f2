"""Which weights go: the lowest scores of a row, a matrix, or an aligned group of M."""

from __future__ import annotations

from typing import Literal

import torch

from prunebench.errors import PrunebenchError


def lowest(score: torch.Tensor, sparsity: float | str, *, group: Literal["row", "matrix"]) -> torch.Tensor:
    """True for the weights to remove, bool [out, in].

    ``score`` [out, in]; ``sparsity`` a share (int(n * share) lowest of every row or of the matrix go) or 'N:M' (the M - N
    lowest of every M inputs go, whatever ``group``). Equal scores go by their index, so the count is exact.
    """
    if isinstance(sparsity, str):
        keep, of = map(int, sparsity.split(":"))
        return lowest_of_groups(score, zeros=of - keep, of=of)
    if group == "matrix":
        return _lowest_of_rows(score.reshape(1, -1), sparsity).view_as(score)
    return _lowest_of_rows(score, sparsity)


def lowest_of_groups(score: torch.Tensor, *, zeros: int, of: int) -> torch.Tensor:
    """True for the ``zeros`` lowest of each aligned group of ``of`` consecutive columns, bool [out, in].

    Raises PrunebenchError where ``of`` does not divide the number of columns.
    """
    rows, columns = score.shape
    if columns % of:
        raise PrunebenchError(
            f"groups of {of} do not divide {columns} input features",
            hint="choose an N:M whose M divides every linear's input, or a share such as 0.5",
        )
    # Few members a group: counting who is smaller needs no sort. members [of, out * in / of]
    members = score.reshape(-1, of).t().contiguous()
    # As if all were equal, where the earlier column counts as smaller; then every pair that says otherwise.
    rank = torch.arange(of, dtype=torch.int8, device=score.device)[:, None].repeat(1, members.shape[1])
    for a in range(of):
        for b in range(a + 1, of):
            b_smaller = (members[b] < members[a]).view(torch.int8)
            rank[a] += b_smaller
            rank[b] -= b_smaller
    return (rank < zeros).t().reshape(rows, columns)


def _lowest_of_rows(score: torch.Tensor, share: float) -> torch.Tensor:
    """True for the int(columns * share) lowest of each row; ties in index order. score [rows, columns]."""
    count = int(score.shape[1] * share)
    if count == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    # Selection is linear in the row; a sort would cost three times as much on a CPU.
    limit = score.kthvalue(count, dim=1, keepdim=True).values
    mask = score <= limit
    if bool((mask.sum(dim=1) == count).all()):
        return mask
    below, tied = score < limit, score == limit
    missing = count - below.sum(dim=1, keepdim=True)
    return below | (tied & (tied.cumsum(dim=1) <= missing))
