"""Token sequences that begin alike, put together as a tree: each beginning is computed once.

The choices of a question share its text, and the questions of a task share its examples. In a row
of a batch every distinct beginning of its sequences is one token (a node). A node attends to the
nodes on its way from the root, and its position is its depth, so that its state is the one that it
has in its own sequence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from prunebench.model.batches import batches_by_length


@dataclass(frozen=True)
class Row:
    """Some sequences as one tree."""

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


def batches_of(rows: Sequence[Row], tokens: int) -> list[list[Row]]:
    """`batches_by_length` of rows, which come longest first."""
    lengths = [len(row.tokens) for row in rows]
    return [list(rows[some]) for some in batches_by_length(lengths, tokens)]


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
