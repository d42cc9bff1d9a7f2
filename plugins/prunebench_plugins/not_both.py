"""Options of which only one may be given."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def check_not_both(options: Any, names: Iterable[str]) -> None:
    """Raise ValueError if more than one of these options is given."""
    given = [f"`{name}`" for name in names if getattr(options, name) is not None]
    if len(given) > 1:
        raise ValueError(f"give {' or '.join(given)}, not both")
