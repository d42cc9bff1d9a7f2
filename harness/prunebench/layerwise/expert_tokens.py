"""How many calibration tokens each expert got, and what happens if they are too few.

A router sends each token to some experts only, so an expert may see little of the calibration, or
nothing.
"""

from __future__ import annotations

import re
import statistics as averages
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunebench.layerwise.layer_run import LayerRun
    from prunebench.layerwise.statistics import Statistic

FEWEST_TOKENS = 16
"""Tokens that an expert needs, so that the statistics of its input count.

With fewer, all its input features count as equal, so that methods fall back to the magnitude of its
weights. 16 tokens are four for each weight of a group of 2:4."""
STATISTICS_BYTES = 2 << 30
"""Memory for the statistics of the experts of one layer; with more, they are gathered in turns."""
_EXPERT = re.compile(r"(?P<expert>.*\bexperts\.\d+)\.")


def expert_of(name: str) -> str | None:
    """The expert that a matrix belongs to: 'mlp.experts.3' of 'mlp.experts.3.up_proj'; or None."""
    found = _EXPERT.match(f"{name}.")
    return found["expert"] if found else None


@dataclass
class ExpertTokens:
    """The tokens of the inputs of experts, by path of the group's first matrix in the model."""

    tokens: dict[str, int] = field(default_factory=dict)

    def too_few(self, path: str, tokens: int) -> bool:
        """Note the ``tokens`` of an input, and whether they are fewer than `FEWEST_TOKENS`."""
        self.tokens[path] = tokens
        return tokens < FEWEST_TOKENS

    def notes(self) -> dict[str, Any]:
        """What the record says; nothing if the model has no experts."""
        by_expert = {expert_of(path) or path: tokens for path, tokens in self.tokens.items()}
        if not by_expert:
            return {}
        counts = sorted(by_expert.values())
        found: dict[str, Any] = {
            "tokens_per_expert": {
                "fewest": counts[0],
                "median": averages.median(counts),
                "most": counts[-1],
            }
        }
        few = {path: tokens for path, tokens in by_expert.items() if tokens < FEWEST_TOKENS}
        if few:
            found["experts_by_magnitude"] = {
                "experts": len(few),
                "of": len(by_expert),
                "fewer_tokens_than": FEWEST_TOKENS,
                "tokens": few,
            }
        return found


def in_turns(
    run: LayerRun, groups: Sequence[Sequence[str]], statistics: Collection[Statistic]
) -> list[list[Sequence[str]]]:
    """Split the groups of a layer into those whose statistics are gathered together, in order.

    All of them, unless those of the experts take more than `STATISTICS_BYTES`. Then each turn but
    the last has some experts, with all their groups: no expert reads what another one writes. The
    last has everything that is no expert's.
    """
    sizes = [_bytes(run, group, statistics) if expert_of(group[0]) else 0 for group in groups]
    if sum(sizes) <= STATISTICS_BYTES:
        return [list(groups)]
    turns: list[list[Sequence[str]]] = [[]]
    used, last = 0, None
    for group, size in zip(groups, sizes, strict=True):
        expert = expert_of(group[0])
        if expert is None:
            continue
        if used + size > STATISTICS_BYTES and expert != last and turns[-1]:
            turns.append([])
            used = 0
        turns[-1].append(group)
        used, last = used + size, expert
    return [*turns, [group for group in groups if expert_of(group[0]) is None]]


def _bytes(run: LayerRun, group: Sequence[str], statistics: Collection[Statistic]) -> int:
    """About how much memory the statistics of an input take; those of plugins count as matrices."""
    features = int(run.linear(group[0]).in_features)
    vectors = {"input_norm", "input_mean", "input_variance", "input_max"}
    matrices = sum(each not in vectors for each in statistics)
    return 4 * features * (features * matrices + len(statistics))
