"""What allocations have in common: shares within a limit, and shares as N:M patterns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prunebench import anatomy

if TYPE_CHECKING:
    from prunebench import Context, Pattern


def sizes_of(model: Any, context: Context) -> dict[str, int]:
    """The number of weights of each prunable linear, by its path."""
    return {path: linear.weight.numel() for path, linear in context.linears(model).items()}


def of_layers(model: Any, paths: Sequence[str]) -> list[list[str]]:
    """Those of ``paths`` that are in each decoder layer."""
    prefix = f"{anatomy(model).layers_path}."
    found: list[list[str]] = [[] for _ in anatomy(model).layers]
    for path in paths:
        found[int(path.removeprefix(prefix).partition(".")[0])].append(path)
    return found


def of_groups(
    groups: Sequence[Sequence[str]], shares: Sequence[float], otherwise: float
) -> list[float]:
    """The shares of the groups that are not empty, with ``otherwise`` for those that are."""
    rest = iter(shares)
    return [next(rest) if group else otherwise for group in groups]


def capped(shares: Sequence[float], sizes: Sequence[int], highest: float) -> list[float]:
    """Shares of at most ``highest`` with the same mean over the weights, in the same order.

    What is above the limit is taken from the others instead, in proportion to their shares. The
    mean must be at most ``highest``. ``sizes``: the number of weights that each share is of.
    """
    total = sum(share * size for share, size in zip(shares, sizes, strict=True))
    found = list(shares)
    full: set[int] = set()
    # Every round raises the others, which may carry some of them over the limit too.
    while over := {i for i, share in enumerate(found) if share > highest and i not in full}:
        full |= over
        left = total - highest * sum(sizes[i] for i in full)
        rest = sum(shares[i] * sizes[i] for i in range(len(shares)) if i not in full)
        factor = left / rest if rest else 0.0
        found = [highest if i in full else share * factor for i, share in enumerate(shares)]
    return found


def patterns(
    model: Any,
    shares: Sequence[float] | Mapping[str, float],
    sizes: Mapping[str, int],
    pattern: Pattern,
) -> dict[str, int]:
    """How many of every M weights stay in each linear, for the share that it loses.

    Each is the whole number next to M * (1 - share) below or above. Those that are rounded up are
    the ones with the largest remainders, as long as no more weights stay in all than N of M.
    """
    layers = of_layers(model, list(sizes))
    by_path = (
        dict(shares)
        if isinstance(shares, Mapping)
        else {path: share for some, share in zip(layers, shares, strict=True) for path in some}
    )
    exact = {path: pattern.of * (1 - share) for path, share in by_path.items()}
    # A share such as 0.7 has no exact binary form: 10 * (1 - 0.7) must still be 3.
    kept = {path: int(one + 1e-9) for path, one in exact.items()}
    # Linears with one share stay together, so that a layer has one pattern.
    together: dict[tuple[float, int], list[str]] = {}
    for layer, some in enumerate(layers):
        for path in some:
            together.setdefault((exact[path], layer), []).append(path)
    room = sum(pattern.keep * size for size in sizes.values()) - sum(
        kept[path] * size for path, size in sizes.items()
    )
    for (one, _), paths in sorted(
        together.items(), key=lambda item: (item[0][0] % 1, item[0]), reverse=True
    ):
        more = sum(sizes[path] for path in paths)
        if one - kept[paths[0]] > 1e-9 and more <= room:
            room -= more
            for path in paths:
                kept[path] += 1
    return kept
