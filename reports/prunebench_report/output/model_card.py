"""What was measured of models as Markdown for a model card, with the conditions of each figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prunebench_report.data.columns import Row, numbered
from prunebench_report.data.machines import machines
from prunebench_report.output.paper_tables import as_markdown
from prunebench_report.text import MISSING, clean, fixed, number, percent, seconds, size, times

if TYPE_CHECKING:
    from prunebench_report.data.report_input import ReportInput

Line = list[str]
"""What a figure is, then its value of each model."""


def model_card(given: ReportInput) -> str:
    """A section with one table for each model: figures as rows, dense and pruned as columns.

    A cell without a result has no column.
    """
    parts = ["## Evaluation\n"]
    for model in dict.fromkeys(row["model"] for row in given.rows):
        rows = [row for row in given.rows if row["model"] == model and row["status"] == "ok"]
        if rows:
            head = [clean(str(model)), *(_name(row) for row in rows)]
            parts.append(as_markdown(head, _lines(rows)))
    return "\n".join([*parts, _conditions(given)])


def _name(row: Row) -> str:
    return str(row["label"] if row.get("label") else row["name"])


def _lines(rows: Sequence[Row]) -> list[Line]:
    lines = [
        *_sets(rows, "perplexity_protocol", _perplexity),
        *_sets(rows, "task_protocol", _score),
        *_sets(rows, "metric_protocol", _figure),
        *_sets(rows, "latency_protocol", _speed),
    ]
    counted = [
        ["parameters", *(_million(row) for row in rows)],
        ["zeros among the prunable weights", *(percent(row["sparsity"]) for row in rows)],
        ["weights in memory", *(size(row["memory_bytes"]) for row in rows)],
        ["files", *(size(row["disk_bytes"]) for row in rows)],
    ]
    return [*lines, *(line for line in counted if set(line[1:]) != {MISSING})]


def _sets(rows: Sequence[Row], protocol: str, lines_of: Any) -> list[Line]:
    """The lines of every numbered set of columns, for each protocol in one of the rows."""
    places: dict[str, dict[int, int]] = {}
    for position, row in enumerate(rows):
        index = 0
        while numbered(protocol, index) in row:
            if (name := row[numbered(protocol, index)]) is not None:
                places.setdefault(name, {})[position] = index
            index += 1
    found: list[Line] = []
    for name, where in places.items():
        sets = [_Set(row, where.get(position)) for position, row in enumerate(rows)]
        found += lines_of(name, sets)
    return found


class _Set:
    """One numbered set of a row's columns; every column is missing if the row has no such set."""

    def __init__(self, row: Row, index: int | None) -> None:
        self._row, self._index = row, index

    def __getitem__(self, key: str) -> Any:
        return None if self._index is None else self._row.get(numbered(key, self._index))


def _first(sets: Sequence[_Set], key: str) -> Any:
    return next((one[key] for one in sets if one[key] is not None), None)


def _perplexity(protocol: str, sets: Sequence[_Set]) -> list[Line]:
    return [[f"perplexity ({protocol})", *(number(one["perplexity"], 4) for one in sets)]]


def _score(protocol: str, sets: Sequence[_Set]) -> list[Line]:
    return [[f"{protocol}, %", *(_with_error(one) for one in sets)]]


def _with_error(one: _Set) -> str:
    value, error = one["task_value"], one["task_stderr"]
    if value is None:
        return MISSING
    return fixed(100 * value, 1) + ("" if error is None else f" ± {fixed(100 * error, 1)}")


def _figure(protocol: str, sets: Sequence[_Set]) -> list[Line]:
    unit = f", {_first(sets, 'metric_unit')}" if _first(sets, "metric_unit") else ""
    name = f"{_first(sets, 'metric')}{unit} ({protocol})"
    return [[name, *(number(one["metric_value"], 3) for one in sets)]]


def _speed(protocol: str, sets: Sequence[_Set]) -> list[Line]:
    lines = [
        [f"time to first token ({protocol})", *(seconds(one["ttft_p50_s"]) for one in sets)],
        [f"time of a token ({protocol})", *(seconds(one["inter_token_p50_s"]) for one in sets)],
        [f"speed-up against dense ({protocol})", *(_ratio(one) for one in sets)],
    ]
    return [line for line in lines if set(line[1:]) != {MISSING}]


def _ratio(one: _Set) -> str:
    low, high = one["inter_token_speedup_low"], one["inter_token_speedup_high"]
    text = times(one["inter_token_speedup"])
    return text if low is None or high is None else f"{text} [{low:.2f}, {high:.2f}]"


def _million(row: Row) -> str:
    count = row["parameters"]
    return MISSING if count is None else f"{number(count / 1e6)} M"


def _conditions(given: ReportInput) -> str:
    """One paragraph: versions, machine, and what an interval means."""
    facts = given.records[0].provenance if given.records else {}
    versions = ", ".join(
        f"{name} {clean(str(facts[name]))}"
        for name in ("prunebench", "torch", "transformers", "lm-eval")
        if facts.get(name)
    )
    where = "; ".join(clean(one) for one in machines(given.records))
    means = " Values are means over seeds." if any("members" in one for one in given.rows) else ""
    return (
        f"Measured with {versions or 'prunebench'}{f' on {where}' if where else ''}. "
        "Behind ± is the standard error, in brackets the 95 % interval. The time of a token "
        f"is the median between two generated tokens.{means}\n"
    )
