"""The table as JSON inside the page, from which its script makes the downloads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from prunebench_report.data.columns import column_names

if TYPE_CHECKING:
    from prunebench_report.data.report_input import ReportInput

SCHEMA = 1


def embedded_data(given: ReportInput) -> str:
    """What `prunebench export --format json` writes, with the run's name; safe inside <script>.

    What all cells share is in `same`; `cells` has a list for each cell, in the order of
    `varying`.
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
    # Nothing that a text contains may close the element or open another.
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
