"""The table inside the page."""

from __future__ import annotations

import json

from prunebench_report.output.embedded_data import embedded_data


def test_the_embedded_data_are_the_table(build):
    given = build.given([*build.quickstart(), build.failed(build.cell("sparsegpt"))])
    data = json.loads(embedded_data(given))
    cells = [
        {**data["same"], **dict(zip(data["varying"], line, strict=True))} for line in data["cells"]
    ]
    assert cells == given.table
    assert list(given.table[0]) == data["columns"]
    assert data["same"]["device"] == "cpu"
    assert data["gate"] == 0.95


def test_no_text_can_end_the_element(build):
    data = embedded_data(build.given([build.record(build.cell("</script><!--"), 25.0, 1.0)]))
    assert not set("<>&") & set(data)
    assert json.loads(data)["same"]["method"] == "</script><!--"
