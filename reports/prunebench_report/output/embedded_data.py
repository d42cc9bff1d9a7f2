"""The table inside the page, from which its script makes the downloads."""

from __future__ import annotations

import base64
import gzip
import json
from typing import TYPE_CHECKING

from prunebench_report.data.columns import column_names

if TYPE_CHECKING:
    from prunebench_report.data.report_input import ReportInput

SCHEMA = 1


def embedded_data(given: ReportInput) -> str:
    """What `prunebench export --format json` writes, with the run's name: JSON, gzip, base64.

    What all cells share is in `same`; `cells` has a list for each cell, in the order of
    `varying`. Compressed, a thousand cells take a third of the bytes, and the browser reads none
    of them before somebody downloads.
    """
    table = given.table
    columns = list(table[0]) if table else column_names(1, 1)
    values = [[row[column] for column in columns] for row in table]
    # By type as well: 1, 1.0 and True are equal but are written differently.
    same = [
        len({(type(line[index]), line[index]) for line in values}) == 1
        for index in range(len(columns))
    ]
    content = {
        "schema": SCHEMA,
        "suite": given.plan.suite,
        "title": given.plan.title,
        "suite_sha256": given.plan.suite_sha256,
        "gate": given.gate,
        "columns": columns,
        "same": {column: values[0][i] for i, column in enumerate(columns) if same[i]},
        "varying": [column for i, column in enumerate(columns) if not same[i]],
        "cells": [[value for i, value in enumerate(line) if not same[i]] for line in values],
    }
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    # Without a time of its own the same run gives the same page.
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
