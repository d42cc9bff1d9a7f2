"""Token sequences that begin alike, put together as a tree: each beginning is computed once.

The choices of a question share its text, and the questions of a task share its examples. In a row
of a batch every distinct beginning of its sequences is one token (a node). A node attends to the
nodes on its way from the root, and its position is its depth, so that its state is the one that it
has in its own sequence.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import torch

JOINED = 3
"""Trees are put side by side in rows of up to this part of the model's width. Attention between all
tokens of a row then takes 5 % of a layer; padding took 8 % of the tokens, and short batches 10 %."""


@dataclass(frozen=True)
class Row:
    """Some sequences as trees: as one, or as several that do not see each other."""

    members: list[int]
    """Numbers of the sequences, in the order of `paths`."""
    tokens: list[int]
    """The token of each node; a node comes after those before it in its sequence."""
    depths: list[int]
    """Its position in its sequence."""
    paths: list[list[int]]
    """For each sequence, its nodes in order."""

    def attends(self) -> torch.Tensor:
        """Whether the node of a row sees the node of a column: bool [nodes, nodes]."""
        seen = torch.zeros(len(self.tokens), len(self.tokens), dtype=torch.bool)
        known = 0
        for path in self.paths:
            # The nodes that this sequence added are its last ones, and follow each other.
            new = [node for node in path if node >= known]
            if not new:
                continue
            start, before = new[0], path[: len(path) - len(new)]
            added = slice(start, start + len(new))
            seen[added, before] = True
            seen[added, added] = torch.ones(len(new), len(new), dtype=torch.bool).tril()
            known = start + len(new)
        return seen


def rows_of(sequences: Sequence[Sequence[int]], hidden: int, most: int) -> list[Row]:
    """Put sequences of token ids that begin alike into common rows of at most ``most`` nodes.

    ``hidden`` is the model's width, which decides how long a row pays (`_worth`). A sequence that
    is longer than ``most`` has a row of its own. The longest rows come first.
    """
    order = sorted(range(len(sequences)), key=lambda index: tuple(sequences[index]))
    rows: list[Row] = []
    shared = 0  # tokens that all sequences of the last row begin with
    for index, before in zip(order, [None, *order], strict=False):
        tokens = sequences[index]
        same = 0 if before is None else _common(sequences[before], tokens)
        if before is not None:
            shared_then = min(shared, same)
            nodes = len(rows[-1].tokens) + len(tokens) - same
            if nodes <= min(most, _worth(shared_then, hidden)):
                shared = shared_then
                _add(rows[-1], index, tokens, same)
                continue
        rows.append(Row([], [], [], []))
        shared = len(tokens)
        _add(rows[-1], index, tokens, 0)
    return sorted(rows, key=lambda row: -len(row.tokens))


def batches_of(rows: Sequence[Row], tokens: int, hidden: int) -> list[list[Row]]:
    """Batches of at most ``tokens`` tokens with padding, at least one row each, the longest first.

    Short rows are put beside each other in one, so that there is little padding. Rows become no
    longer than the longest one, or than pays for a model of width ``hidden``: each token attends to
    its whole row.
    """
    left = sorted(rows, key=_size)
    batches = []
    while left:
        length = max(_size(left[-1]), min(hidden // JOINED, tokens))
        batch: list[Row] = []
        while left and len(batch) < max(1, tokens // length):
            batch.append(_side_by_side(_taken(left, length)))
        batches.append(sorted(batch, key=_size, reverse=True))
    return batches


def _taken(left: list[Row], room: int) -> list[Row]:
    """Take rows of together at most ``room`` nodes out of ``left``, which are sorted by size.

    Always the longest one that fits, so that the short ones fill what the others leave.
    """
    found = []
    while at := bisect_right(left, room, key=_size):
        found.append(left.pop(at - 1))
        room -= _size(found[-1])
    return found


def _size(row: Row) -> int:
    return len(row.tokens)


def _side_by_side(rows: Sequence[Row]) -> Row:
    """One row with the trees of all of ``rows``."""
    whole = Row([], [], [], [])
    for row in rows:
        start = len(whole.tokens)
        whole.members.extend(row.members)
        whole.tokens.extend(row.tokens)
        whole.depths.extend(row.depths)
        whole.paths.extend([start + node for node in path] for path in row.paths)
    return whole


def _worth(shared: int, hidden: int) -> int:
    """Nodes of a row of which all sequences begin with the same ``shared`` tokens.

    A row of T nodes costs about T (6 hidden + T) in a layer of 12 hidden^2 weights: products, and
    attention between all nodes. For each token that is not shared this is least at
    T = P + sqrt(P (P + 6 hidden)) with P = ``shared``: longer rows would share more, but their
    branches, which do not see each other, would pay more for attention.
    """
    return shared + math.isqrt(shared * (shared + 6 * hidden))


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens both begin with."""
    for index, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return index
    return min(len(left), len(right))


def _add(row: Row, index: int, tokens: Sequence[int], same: int) -> None:
    """Add a sequence to ``row``; it shares ``same`` tokens with the one that was added last."""
    start = len(row.tokens)
    row.paths.append(
        [*(row.paths[-1][:same] if same else []), *range(start, start + len(tokens) - same)]
    )
    row.members.append(index)
    row.tokens.extend(tokens[same:])
    row.depths.extend(range(same, len(tokens)))
