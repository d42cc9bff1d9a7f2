"""The table inside the page."""

from __future__ import annotations

import base64
import gzip
import json

from prunebench_report.output.embedded_data import embedded_data


def unpacked(data):
    return json.loads(gzip.decompress(base64.b64decode(data, validate=True)))


def test_the_embedded_data_are_the_table(build):
    given = build.given([*build.quickstart(), build.failed(build.cell("sparsegpt"))])
    data = unpacked(embedded_data(given))
    cells = [
        {**data["same"], **dict(zip(data["varying"], line, strict=True))} for line in data["cells"]
    ]
    assert cells == given.table
    assert list(given.table[0]) == data["columns"]
    assert data["same"]["device"] == "cpu"
    assert data["gate"] == 0.95


def test_no_text_can_end_the_element_and_the_same_table_gives_the_same_page(build):
    given = build.given([build.record(build.cell("</script><!--"), 25.0, 1.0)])
    data = embedded_data(given)
    assert not set("<>&") & set(data)
    assert unpacked(data)["same"]["method"] == "</script><!--"
    assert embedded_data(given) == data
