"""Tables of cells against scores, one for each model: what `tasks` and `metrics` have in common."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from prunebench_report.data.groups import models_with
from prunebench_report.text import MISSING, clean

if TYPE_CHECKING:
    from prunebench.record.record import Record
    from prunebench_report.data.report_input import ReportInput

Key = TypeVar("Key", bound=Hashable)
Score = TypeVar("Score")

ScoreCell = dict[str, Any]
"""`text`, the `note` below it, and its `tone`: 'better', 'worse' or None."""


def score_cell(text: str = MISSING, note: str | None = None, tone: str | None = None) -> ScoreCell:
    return {"text": text, "note": note, "tone": tone}


def score_tables(
    given: ReportInput,
    scores: Callable[[Record | None], Mapping[Key, Score]],
    *,
    head: Callable[[Score], tuple[str, str]],
    cell: Callable[[Score | None, Score | None], ScoreCell],
    protocol: Callable[[Score], str],
    mean: Callable[[Sequence[Key], Mapping[Key, Score], Mapping[Key, Score]], ScoreCell]
    | None = None,
) -> list[dict[str, Any]]:
    """One table for each model that has scores, dense first.

    ``scores`` are those of a record; ``head`` names a column and says what it is about; ``cell``
    shows a score beside dense's; ``mean`` fills a first column from all scores of a row and of
    dense.
    """
    tables = []
    for model, members in models_with(given.detailed, scores):
        # One column for each score that any of the cells has; its last holder names it.
        columns = {key: score for record in members for key, score in scores(record).items()}
        heads = [head(score) for score in columns.values()]
        rows = []
        for record in members:
            mine, dense = scores(record), scores(given.dense_of(record))
            cells = [cell(mine.get(key), dense.get(key)) for key in columns]
            if mean is not None:
                cells.insert(0, mean(list(columns), mine, dense))
            rows.append(
                {
                    "id": record.id,
                    "name": clean(given.names[record.id]),
                    "dense": record.cell.method.name == "dense",
                    "cells": cells,
                }
            )
        tables.append(
            {
                "model": model,
                "mean": mean is not None,
                "heads": [{"name": clean(name), "about": clean(about)} for name, about in heads],
                "rows": rows,
                "protocols": list(dict.fromkeys(clean(protocol(s)) for s in columns.values())),
            }
        )
    return tables
