"""What a plugin changed or left behind, as sentences for the record."""

from __future__ import annotations

from dataclasses import dataclass, field

from prunebench.errors import printable


@dataclass
class Flags:
    """One sentence for each side effect that was found."""

    found: list[str] = field(default_factory=list)

    def add(self, who: str, what: str) -> None:
        """``who`` did ``what``, e.g. 'the method' and 'changed sys.path; restored'."""
        self.found.append(printable(f"{who} {what}"))
