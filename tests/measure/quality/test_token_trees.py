"""Sequences as trees: every sequence is there, beginnings are there once, nodes see their own."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunebench.measure.quality.token_trees import JOINED, batches_of, rows_of

# Few tokens, so that beginnings are shared and sequences repeat.
SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), max_size=12)


@given(SEQUENCES, st.integers(1, 50), st.integers(1, 40))
def test_every_sequence_is_a_path_and_every_beginning_one_node(sequences, hidden, most) -> None:
    rows = rows_of(sequences, hidden, most)
    members = [index for row in rows for index in row.members]
    assert sorted(members) == list(range(len(sequences)))
    for row in rows:
        beginnings = {}
        for index, path in zip(row.members, row.paths, strict=True):
            assert [row.tokens[node] for node in path] == sequences[index]
            assert [row.depths[node] for node in path] == list(range(len(path)))
            for length, node in enumerate(path, start=1):
                assert beginnings.setdefault(tuple(sequences[index][:length]), node) == node
        assert len(beginnings) == len(row.tokens)
        assert len(row.tokens) <= most or len(row.paths) == 1 or len(set(map(len, row.paths))) == 1
    assert [len(row.tokens) for row in rows] == sorted(len(row.tokens) for row in rows)[::-1]


@given(SEQUENCES.filter(bool), st.integers(1, 40), st.integers(1, 60))
def test_a_node_sees_the_nodes_before_it_in_its_sequence(sequences, hidden, tokens) -> None:
    rows = rows_of(sequences, hidden=10, most=100)
    for row in [*rows, *(row for batch in batches_of(rows, tokens, hidden) for row in batch)]:
        expected = torch.zeros(len(row.tokens), len(row.tokens), dtype=torch.bool)
        for path in row.paths:
            for length, node in enumerate(path, start=1):
                expected[node, path[:length]] = True
        assert torch.equal(row.attends(), expected)


def test_a_row_is_as_long_as_it_pays() -> None:
    # 40 texts of 100 tokens that begin with the same 60; 6 hidden = 600.
    texts = [[7] * 60 + [index + 8] * 40 for index in range(40)]
    rows = rows_of(texts, hidden=100, most=10_000)
    most = 60 + math.isqrt(60 * 660)
    assert most == 258
    assert [len(row.tokens) for row in rows] == [60 + 4 * 40] * 10
    # Fewer nodes are allowed than would pay.
    assert max(len(row.tokens) for row in rows_of(texts, hidden=100, most=150)) == 60 + 2 * 40
    # Texts that share nothing have a row each.
    alone = rows_of([[index] * 5 for index in range(6)], hidden=1000, most=10_000)
    assert [len(row.tokens) for row in alone] == [5] * 6


@given(SEQUENCES, st.integers(1, 60), st.integers(1, 100))
def test_batches_hold_every_sequence_once_and_keep_their_size(sequences, tokens, hidden) -> None:
    rows = rows_of(sequences, hidden=10, most=20)
    batches = batches_of(rows, tokens, hidden)
    longest = max((len(row.tokens) for row in rows), default=0)
    members = []
    for batch in batches:
        lengths = [len(row.tokens) for row in batch]
        assert lengths == sorted(lengths)[::-1]
        assert lengths[0] * len(lengths) <= max(tokens, longest)
        assert lengths[0] <= max(longest, hidden // JOINED)
        for row in batch:
            members += row.members
            for index, path in zip(row.members, row.paths, strict=True):
                assert [row.tokens[node] for node in path] == sequences[index]
                assert [row.depths[node] for node in path] == list(range(len(path)))
    assert sorted(members) == list(range(len(sequences)))
    assert sum(len(row.tokens) for batch in batches for row in batch) == sum(
        len(row.tokens) for row in rows
    )


@pytest.mark.parametrize(("tokens", "counts"), [(1, [1] * 4), (20, [2, 2]), (35, [3, 1])])
def test_a_batch_has_so_many_tokens_with_padding(tokens: int, counts: list[int]) -> None:
    rows = rows_of([[number] * length for number, length in enumerate((10, 9, 8, 7))], 1, 1)
    assert [len(batch) for batch in batches_of(rows, tokens, hidden=1)] == counts


def test_short_trees_lie_beside_each_other_in_rows_of_about_one_length() -> None:
    rows = rows_of([[number] * (20 + 3 * number) for number in range(20)], hidden=1, most=1)
    nodes = sum(len(row.tokens) for row in rows)
    # One row for each would be 20 x 77 nodes.
    (batch,) = batches_of(rows, tokens=2000, hidden=250 * JOINED)
    assert len(batch) * len(batch[0].tokens) < 1.04 * nodes
