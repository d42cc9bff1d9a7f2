"""What two cells must have in common before one method may be said to beat another.

Of two methods, the one that removes less nearly always keeps more quality. So methods are compared
only at the same N:M pattern, the same zeros, the same removed parameters and the same recovery, and
beside the same dense cell: one on another device has other speed-ups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prunebench_report.data.columns import Row
from prunebench_report.text import percent

SAME = 0.01
"""Shares that differ by at most this much are the same: methods reach a wanted share roughly."""
_ROUNDING = 1e-9


def same_setting(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows in groups of the same setting, each in the order of the table."""
    groups: list[list[Row]] = []
    for row in rows:
        # Compared with the first of a group, so that small steps cannot join unlike cells.
        group = next((one for one in groups if _alike(one[0], row)), None)
        if group is None:
            groups.append([row])
        else:
            group.append(row)
    return groups


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    if any(one.get(key) != other.get(key) for key in ("pattern", "recovery", "dense_cell")):
        return False
    return all(
        abs((one.get(key) or 0.0) - (other.get(key) or 0.0)) <= SAME + _ROUNDING
        for key in ("sparsity", "removed_share")
    )


def setting(row: Mapping[str, Any]) -> str:
    """The setting in words: 'at 50 % zeros', 'with 2:4 zeros and 10 % of parameters removed'."""
    parts = []
    if row.get("pattern"):
        parts.append(f"with {row['pattern']} zeros")
    elif (row.get("sparsity") or 0.0) > SAME:
        parts.append(f"at {percent(row['sparsity'], 0)} zeros")
    if (row.get("removed_share") or 0.0) > SAME:
        parts.append(f"with {percent(row['removed_share'], 0)} of the parameters removed")
    text = " and ".join(parts) or "with almost nothing removed"
    return f"{text}, after {row['recovery']}" if row.get("recovery") else text
