"""Pruning one linear by another share than the next: what an allocation decided, told to a method that knows one share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prunebench.plugin.api.method import LayerwiseMethod

Shares = Mapping[str, float]
"""The share of each linear, by its path in the model."""


@contextmanager
def at_share(method: LayerwiseMethod, share: float | None) -> Iterator[None]:
    """Within, the method's option `sparsity` is ``share``; None leaves it as the suite says."""
    asked = method.options
    if share is not None:
        method.options = asked.model_copy(update={"sparsity": share})
    try:
        yield
    finally:
        method.options = asked


def by_share(
    names: Sequence[str], prefix: str, shares: Shares | None
) -> list[tuple[float | None, list[str]]]:
    """The linears ``names`` of a layer at path ``prefix``, those of the same share together."""
    if shares is None:
        return [(None, list(names))]
    found: dict[float, list[str]] = {}
    for name in names:
        found.setdefault(shares[f"{prefix}.{name}"], []).append(name)
    return list(found.items())
