"""Read what a run found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def load_run(folder: str | Path) -> pd.DataFrame:
    """The records of a run as a table: a row for each cell that has a record, in the plan's order.

    The columns are those of `prunebench export`; their names contain the units (seconds, bytes,
    joules). Raises PrunebenchError if ``folder`` is not a run folder.
    """
    from prunebench_report import load_table

    return load_table(Path(folder))
