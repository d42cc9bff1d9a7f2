"""An allocation in the report: in the label, in the card with its shares, in the exported columns; cells are not pooled over it."""

from __future__ import annotations

from prunebench.experiment.plugins import AllocationRef
from prunebench_report import render
from prunebench_report.data.seeds import groups
from prunebench_report.data.table import plain

OWL = AllocationRef(
    name="owl", distribution="prunebench", version="0.1.0", options={"spread": 0.08}, given={}
)


def test_the_card_has_the_allocation_and_its_shares(build, tmp_path) -> None:
    cell = build.cell("wanda", sparsity=0.5)
    owl = cell.model_copy(update={"allocation": OWL})
    record = build.record(owl, 27.0, 1.1)
    record.method_notes["allocation"] = {
        "name": "owl",
        "mean_share": 0.5,
        "layer_shares": [0.4321, 0.5679],
    }
    records = [build.record(build.cell("dense"), 25.0, 1.0), build.record(cell, 28.0, 1.1), record]
    assert len(groups([one.cell for one in records])) == 3
    rows = plain(records, 0.95)
    assert [row["allocation"] for row in rows] == [None, None, "owl"]
    assert rows[2]["allocation_options"] == '{"spread": 0.08}'
    page = render(build.store(tmp_path, records))
    for words in (
        "wanda sparsity=0.5 allocation=owl",
        "Allocation options",
        "spread = 0.08",
        "0.4321",
    ):
        assert words in page
