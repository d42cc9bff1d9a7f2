"""Energy of the CPU packages: RAPL, from the kernel's powercap files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
# AMD's counters have this name too. Not intel-rapl-mmio: it shows a package a second time.
_PACKAGE = re.compile(r"intel-rapl:\d+")


@dataclass(frozen=True)
class Domain:
    """The counter of one package in microjoules; after ``most`` it starts again at zero."""

    path: Path
    most: int

    def read(self) -> int:
        """Microjoules.

        Raises OSError if the counter may not be read (by default only root may), ValueError if the
        file contains no number.
        """
        return int((self.path / "energy_uj").read_text(encoding="ascii"))


def packages(root: Path = POWERCAP) -> tuple[list[Domain], str | None]:
    """(the package domains, None), or ([], why there are none).

    All or nothing: the energy of only some packages would mislead.
    """
    found = []
    try:
        folders = sorted(path for path in root.iterdir() if _PACKAGE.fullmatch(path.name))
    except OSError:
        return [], f"no RAPL: {root} does not exist"
    for folder in folders:
        try:
            if not (folder / "name").read_text(encoding="ascii").startswith("package"):
                continue  # 'psys' is the whole platform, which contains the packages
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
    """Joules between two readings; a counter that is lower than before has wrapped around once."""
    total = 0
    for domain, old, new in zip(domains, before, after, strict=True):
        total += new - old if new >= old else new - old + domain.most
    return total / 1e6
