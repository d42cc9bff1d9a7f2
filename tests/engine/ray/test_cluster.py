"""What a cell asks a Ray cluster for; nothing here needs Ray."""

from __future__ import annotations

import importlib.util

import pytest

from prunebench.engine.ray.cluster import Needs, Node, joined, needs_of
from prunebench.errors import PrunebenchError
from small_records import cell

SMALL, LARGE, PLAIN = Node("a", 16, 2, 64e9), Node("b", 64, 8, 512e9), Node("c", 4, 0, 16e9)


def test_without_ray_the_hint_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(PrunebenchError, match=r"pip install 'prunebench\[ray\]'"), joined(None):
        pass


@pytest.mark.parametrize(
    ("facts", "nodes", "needs"),
    [
        ({}, [PLAIN], Needs(4)),
        ({"threads": 2}, [PLAIN], Needs(2)),
        ({"threads": 9}, [PLAIN], Needs(4)),  # Ray would wait for ever for nine
        ({}, [PLAIN, SMALL], Needs(8, 1)),
        ({"device": "cpu"}, [PLAIN, SMALL], Needs(4)),
        ({"device": "cuda", "gpus": 4}, [SMALL, LARGE], Needs(32, 4)),
        ({"gpus": 3}, [PLAIN], Needs(4)),
        ({"memory_limit_bytes": 8_000_000_000}, [PLAIN], Needs(4, 0, 8_000_000_000)),
    ],
)
def test_what_a_cell_needs_of_a_node(
    facts: dict[str, object], nodes: list[Node], needs: Needs
) -> None:
    assert needs_of(cell().model_copy(update=facts), nodes) == needs
    assert any(needs.fit(node) for node in nodes)


def test_a_gpu_by_its_number_is_refused() -> None:
    with pytest.raises(PrunebenchError, match="device 'cuda:1' names one GPU"):
        needs_of(cell().model_copy(update={"device": "cuda:1"}), [SMALL])
    assert not Needs(4, 3).fit(SMALL)
    assert not Needs(1, 0, 10**12).fit(LARGE)
