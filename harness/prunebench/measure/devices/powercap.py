"""RAPL by the kernel's powercap files: the energy of the CPU packages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
_PACKAGE = re.compile(
    r"intel-rapl:\d+"
)  # AMD's counters have the same name; intel-rapl-mmio shows one of them again


@dataclass(frozen=True)
class Domain:
    """One package's counter, microjoules, which starts again at zero after ``most``."""

    path: Path
    most: int

    def read(self) -> int:
        """Raises OSError where it may not be read (by default only root may), ValueError where it holds no number."""
        return int((self.path / "energy_uj").read_text(encoding="ascii"))


def packages(root: Path = POWERCAP) -> tuple[list[Domain], str | None]:
    """The package domains that can be read, or why there are none. All or nothing: half the packages mislead."""
    found = []
    try:
        folders = sorted(path for path in root.iterdir() if _PACKAGE.fullmatch(path.name))
    except OSError:
        return [], f"no RAPL: {root} does not exist"
    for folder in folders:
        try:
            if not (folder / "name").read_text(encoding="ascii").startswith("package"):
                continue  # psys: the whole platform
            domain = Domain(
                folder, int((folder / "max_energy_range_uj").read_text(encoding="ascii"))
            )
            domain.read()
        except PermissionError:
            return [], f"RAPL: {folder}/energy_uj may only be read by root"
        except (OSError, ValueError) as error:
            return [], f"RAPL: {folder}: {error}"
        found.append(domain)
    return found, None if found else f"no RAPL package domain in {root}"


def joules(domains: list[Domain], before: list[int], after: list[int]) -> float:
    """Energy between two readings; a counter that is lower than before has wrapped around once."""
    total = 0
    for domain, old, new in zip(domains, before, after, strict=True):
        total += new - old if new >= old else new - old + domain.most
    return total / 1e6
