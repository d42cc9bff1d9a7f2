"""Notes of a method as they go on the record: plain JSON values of bounded size, whatever the method put there."""

from __future__ import annotations

import json
from typing import Any

from prunebench.isolation.flags import Flags

MOST = 1_000_000
"""Characters of JSON."""


def plain(notes: Any, who: str, flags: Flags) -> dict[str, Any]:
    """``notes`` as JSON values: what is none becomes its text, NaN and infinity too; dropped where too long or cyclic."""
    try:
        text = json.dumps(notes, default=str, allow_nan=True)
    except (ValueError, TypeError, RecursionError) as error:
        flags.add(who, f"wrote notes that are no JSON ({str(error)[:200]}); dropped")
        return {}
    if len(text) > MOST:
        flags.add(who, f"wrote notes of {len(text):,} characters, more than {MOST:,}; dropped")
        return {}
    found = json.loads(text, parse_constant=str)
    if not isinstance(found, dict):
        flags.add(who, "wrote notes that are no mapping; dropped")
        return {}
    return found
