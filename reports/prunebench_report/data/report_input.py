"""What one report is made of: the records of its runs, and the tables that follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from prunebench_report.data.columns import Row
from prunebench_report.data.floors import generation_floors
from prunebench_report.data.names import unique_names
from prunebench_report.data.seeds import pool_seeds
from prunebench_report.data.selection import SHOW_ALL, cell_ids, select_detailed
from prunebench_report.data.table import build_table

if TYPE_CHECKING:
    from prunebench.record.io import GenerationIO
    from prunebench.record.record import Record
    from prunebench.store.plan_file import Plan
    from prunebench.store.run_folder import DamagedRecord


class SuiteText(NamedTuple):
    """A suite file as given; ``run`` is empty if the report covers one run."""

    run: str
    sha256: str
    text: str | None


@dataclass(frozen=True)
class ReportInput:
    """The input of every section of a report. Tables are computed once, when first asked for.

    `table` has a row for each record. `cells` also has those of the plan that were never run or
    whose record is damaged. `rows` are `cells` with seeds pooled: what the main table shows.
    """

    plan: Plan
    records: Sequence[Record]
    damaged: Sequence[DamagedRecord] = ()
    suites: Sequence[SuiteText] = ()
    runs: Mapping[str, str] = field(default_factory=dict)
    """The run of each cell id; empty if the report covers one run."""
    repeated: int = 0
    """Cells that another run of the report has as well: each is shown once."""
    gates: tuple[float, ...] = ()
    """The quality gates of the runs; `gate` is the one that counts."""
    running: bool = False
    """Whether cells are still being run."""

    # cached_property works on a frozen dataclass because it writes to the instance's __dict__
    # directly. Whatever a section does not ask for is never computed.

    @property
    def gate(self) -> float:
        """The share of dense quality that a cell must keep."""
        return self.plan.gate

    @cached_property
    def names(self) -> Mapping[str, str]:
        """The name of each cell id of the plan."""
        return unique_names(self.plan.cells, self.runs)

    @cached_property
    def methods(self) -> list[str]:
        """The methods that prune, in the order of the plan; the place of one decides its mark."""
        names = dict.fromkeys(cell.method.name for cell in self.plan.cells)
        return [name for name in names if name != "dense"]

    @cached_property
    def table(self) -> list[Row]:
        return build_table(
            self.records,
            self.gate,
            self.plan.expect,
            self.names,
            self.plan.generation_gate,
            self.floors,
        )

    @cached_property
    def row_by_id(self) -> Mapping[str, Row]:
        """The row of `table` for each cell id that has a record."""
        return {row["cell"]: row for row in self.table}

    @cached_property
    def record_by_id(self) -> Mapping[str, Record]:
        return {record.id: record for record in self.records}

    @cached_property
    def cells(self) -> list[Row]:
        """One row for each cell of the plan, dense first within its model.

        A cell without a record has only its id, name, model, method and status.
        """
        damaged = {one.path.stem for one in self.damaged}
        every: list[Row] = [
            self.row_by_id.get(cell.id)
            or {
                "cell": cell.id,
                "name": self.names[cell.id],
                "model": cell.model.name,
                "method": cell.method.name,
                "status": "damaged" if cell.id in damaged else "not run",
            }
            for cell in self.plan.cells
        ]
        # Sorting is stable: apart from dense, the plan's order stays.
        models = list(dict.fromkeys(row["model"] for row in every))
        return sorted(every, key=lambda row: (models.index(row["model"]), row["method"] != "dense"))

    @cached_property
    def rows(self) -> list[Row]:
        """`cells` with one row for each group of seeds; `run` has the run if there are several."""
        named = [
            {**row, "run": self.runs[row["cell"]]} if row["cell"] in self.runs else row
            for row in self.cells
        ]
        return pool_seeds(named, self.plan.cells, self.gate, self.plan.generation_gate, self.runs)

    @cached_property
    def results(self) -> list[Row]:
        """The `rows` that have a record."""
        return [row for row in self.rows if row["status"] not in ("not run", "damaged")]

    @cached_property
    def detailed_rows(self) -> list[Row]:
        """The `rows` that are shown in detail."""
        return select_detailed(self.rows) if len(self.table) > SHOW_ALL else self.rows

    @cached_property
    def detailed(self) -> list[Record]:
        """The records behind `detailed_rows`."""
        selected = cell_ids(self.detailed_rows)
        return [record for record in self.records if record.id in selected]

    @cached_property
    def floors(self) -> Mapping[str, list[GenerationIO]]:
        """The I/O floors of each cell id, by the best bandwidth of its device."""
        return generation_floors(self.records)

    def dense_of(self, record: Record) -> Record | None:
        """The record that this one is compared with; None for dense itself or without one."""
        dense = self.row_by_id[record.id]["dense_cell"]
        return None if dense in (None, record.id) else self.record_by_id[dense]
