"""Names for cells that are as short as the run allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from prunebench_report.text import clean

if TYPE_CHECKING:
    from prunebench.experiment.cell import Cell


def unique_names(cells: Sequence[Cell], runs: Mapping[str, str] | None = None) -> dict[str, str]:
    """A name for each cell id.

    The name is the cell's label. The model is added if the cells have several; then, to labels that
    still repeat, the run, the seed and at last the beginning of the id. ``runs`` has the run of
    each cell id if there is more than one run.
    """
    by_id = {cell.id: cell for cell in cells}  # an id is a hash: compute it once
    result = {key: clean(cell.label) for key, cell in by_id.items()}
    if len({cell.model.name for cell in cells}) > 1:
        result = {key: f"{name} · {clean(by_id[key].model.name)}" for key, name in result.items()}
    by_run = {key: (runs or {}).get(key, "") for key in by_id}
    by_seed = {key: f"seed {cell.seed}" for key, cell in by_id.items()}
    for suffix in (by_run, by_seed, {key: key[:6] for key in by_id}):
        groups: dict[str, list[str]] = {}
        for key, name in result.items():
            groups.setdefault(name, []).append(key)
        for members in groups.values():
            # A suffix that all members share would lengthen their names and tell nothing apart.
            if len({suffix[key] for key in members}) > 1:
                result |= {key: f"{result[key]} · {suffix[key]}" for key in members}
    return result
