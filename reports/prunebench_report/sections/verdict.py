"""The verdict: a few generated sentences, each with its key figure, that point at cells of the table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from prunebench_report.data import seeds
from prunebench_report.data.table import Row, by_model
from prunebench_report.figures.pareto import dominates, settled_speedup
from prunebench_report.sections.tasks import judged_by_tasks, quality_key
from prunebench_report.text import TIMES, brief, fixed, number, percent, times

FAST = 1.2
"""The speed-up that the first sentence asks for."""


@dataclass(frozen=True)
class Span:
    """A piece of a sentence; ``cell`` is the id that it points at."""

    text: str
    cell: str | None = None


@dataclass(frozen=True)
class Statement:
    """One finding: what was asked, the figure that answers, and the sentence."""

    key: str
    question: str
    figure: str
    spans: tuple[Span, ...]

    @property
    def text(self) -> str:
        return "".join(span.text for span in self.spans)


def verdict(table: Sequence[Row], gate: float) -> list[Statement]:
    """Two to four statements for each model of the table (rows of `frames.rows`); ``gate`` is a share, e.g. 0.95."""
    groups = by_model(table)
    found: list[Statement] = []
    for model, rows in groups.items():
        where = f" ({model})" if len(groups) > 1 else ""
        found += _of_model(rows, gate, where)
    return found


def _of_model(rows: Sequence[Row], gate: float, where: str) -> list[Statement]:
    done = [row for row in rows if row["status"] == "ok"]
    pruned = [row for row in done if row["method"] != "dense"]
    if not done:
        counts = ", ".join(
            f"{number} {status}"
            for status, number in Counter(row["status"] for row in rows).items()
        )
        return [_say("nothing", f"Finished cells{where}", "0", f"No cell gave a result: {counts}.")]
    if not pruned:
        return [
            _say(
                "nothing",
                f"Finished cells{where}",
                str(len(done)),
                "No pruned cell gave a result yet.",
            )
        ]
    if all(row["dense_cell"] is None for row in pruned):
        best = min(
            (row for row in pruned if row["perplexity"] is not None), key=_perplexity, default=None
        )
        without = "No dense cell finished, so recovery and speed-up cannot be given."
        if best is None:
            return [_say("no-dense", f"Against dense{where}", "n/a", without)]
        spans = (
            Span(f"{without} The lowest perplexity, {number(best['perplexity'])}, is that of "),
            _cell(best),
        )
        return [Statement("no-dense", f"Against dense{where}", "n/a", (*spans, Span(".")))]
    statements = [_quality_when_fast(pruned, where), _speed_above_gate(pruned, gate, where)]
    statements += [_dominated(pruned, where), _zeros(pruned, where)]
    return [statement for statement in statements if statement]


def _quality_when_fast(rows: Sequence[Row], where: str) -> Statement | None:
    question = f"Best quality at {FAST:g}{TIMES} speed or more{where}"
    timed = [row for row in rows if row["inter_token_speedup"] is not None]
    if not timed:
        return None
    fast = [
        row for row in timed if row["inter_token_speedup"] >= FAST and _recovery(row) is not None
    ]
    if not fast:
        top = max(timed, key=_speed)
        spans = (
            Span(f"No cell generates tokens {FAST:g} times as fast as dense; the nearest is "),
            _cell(top),
        )
        return Statement("quality", question, "none", (*spans, Span(f" at {_measured(top)}.")))
    best = max(fast, key=lambda row: (_recovery(row), row["inter_token_speedup"]))
    kept = (
        f" keeps {_kept(best)} of dense quality "
        f"({_judged(best)}perplexity {number(best['perplexity'])}) at {_measured(best)} dense speed per token."
    )
    return Statement(
        "quality", question, f"{fixed(_recovery(best), 1)} %", (_cell(best), Span(kept))
    )


def _speed_above_gate(rows: Sequence[Row], gate: float, where: str) -> Statement | None:
    limit = f"{100 * gate:g} %"
    over = " over tasks" if any(judged_by_tasks(row) for row in rows) else ""
    question = f"Best speed at {limit} recovery{over} or more{where}"
    judged = [row for row in rows if _recovery(row) is not None]
    if not judged:
        return None
    passing = [
        row for row in judged if row["gate_passed"] and row["inter_token_speedup"] is not None
    ]
    if not passing:
        near = max(judged, key=_recovery)
        if near["gate_passed"]:
            return None  # it passes but nothing was timed
        kept = f" with {fixed(_recovery(near), 1)} %."
        spans = (
            Span(f"No pruned cell keeps {limit} of dense quality; the nearest is "),
            _cell(near),
            Span(kept),
        )
        return Statement("speed", question, "none", spans)
    best = max(passing, key=lambda row: (settled_speedup(row) or 0, _recovery(row)))
    if settled_speedup(best) == 1:
        text = f" keeps {_kept(best)} but is not measurably faster than dense: "
        return Statement(
            "speed", question, times(1.0), (_cell(best), Span(f"{text}{_measured(best)}."))
        )
    kept = f" generates tokens at {_measured(best)} dense speed and keeps {_kept(best)}."
    return Statement(
        "speed", question, times(best["inter_token_speedup"]), (_cell(best), Span(kept))
    )


def _dominated(rows: Sequence[Row], where: str) -> Statement | None:
    """Methods all of whose cells are beaten by another method's cell in quality, speed and size together."""
    points = {
        row["cell"]: (_recovery(row), speed, -row["disk_bytes"])
        for row in rows
        if _recovery(row) is not None and row["disk_bytes"] is not None
        for speed in [settled_speedup(row)]
        if speed is not None
    }
    placed = [row for row in rows if row["cell"] in points]
    methods = list(dict.fromkeys(row["method"] for row in placed))
    if len(methods) < 2:
        return None
    beaten: list[tuple[str, Row]] = []
    for method in methods:
        others = [row for row in placed if row["method"] != method]
        winners: list[Row] = []
        for row in (row for row in placed if row["method"] == method):
            winner = _beater(row, others, points)
            if winner is None:
                break  # one that nobody beats is enough to spare its method
            winners.append(winner)
        else:
            beaten.append((method, winners[0]))
    question = f"Methods beaten on every count{where}"
    if not beaten:
        text = "Every method has a cell that no other method beats in quality, speed and size together."
        return _say("dominated", question, "none", text)
    by_winner: dict[str, list[str]] = {}
    for method, winner in beaten:
        by_winner.setdefault(winner["cell"], []).append(method)
    labels = {winner["cell"]: winner["label"] for _, winner in beaten}
    spans: list[Span] = []
    for index, (cell, names) in enumerate(by_winner.items()):
        verb = "" if index else " is beaten" if len(names) == 1 else " are beaten"
        spans.append(Span(f"{'; ' if index else ''}{_listed(names)}{verb} by "))
        spans.append(Span(brief(labels[cell]), cell))
    spans.append(Span(": at least as good in quality, speed and size at once."))
    return Statement("dominated", question, f"{len(beaten)} of {len(methods)}", tuple(spans))


def _listed(words: Sequence[str]) -> str:
    """'random, imp and magnitude'."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _beater(row: Row, others: Sequence[Row], points: Mapping[str, tuple[float, ...]]) -> Row | None:
    """Of the cells that dominate this one the nearest in sparsity, then the best in quality."""
    mine = points[row["cell"]]
    better = [other for other in others if dominates(points[other["cell"]], mine)]
    return min(
        better,
        key=lambda other: (round(abs(other["sparsity"] - row["sparsity"]), 2), -_recovery(other)),
        default=None,
    )


def _zeros(rows: Sequence[Row], where: str) -> Statement | None:
    """What zeros in dense tensors bring, measured."""
    kept = [
        row
        for row in rows
        if row["speedup_expected"] is False
        and row["zeros"] > row["zeros_dense"]
        and row["inter_token_speedup"] is not None
    ]
    if not kept:
        return None
    question = f"Zeros in dense tensors{where}"
    middle = median(row["inter_token_speedup"] for row in kept)
    low, high = min(kept, key=_speed), max(kept, key=_speed)
    shares = sorted({percent(row["sparsity"], 0) for row in kept})
    amount = shares[0] if len(shares) == 1 else f"{shares[0]} to {shares[-1]}"
    if any((settled_speedup(row) or 0) > 1.05 for row in kept):
        text = f"With {amount} zeros in dense tensors no speed-up was expected, yet up to {_measured(high)} was measured, by "
        return Statement(
            "zeros",
            question,
            times(high["inter_token_speedup"]),
            (Span(text), _cell(high), Span(".")),
        )
    text = f"{amount} zeros in dense tensors bring no speed-up: the measured ratio is "
    if len(kept) == 1:
        return Statement(
            "zeros",
            question,
            times(middle),
            (Span(f"{text}{_measured(high)}, by "), _cell(high), Span(".")),
        )
    first = (Span(f"{text}{times(low['inter_token_speedup'])} ("), _cell(low), Span(")"))
    last = (Span(f" to {times(high['inter_token_speedup'])} ("), _cell(high), Span(")."))
    return Statement("zeros", question, times(middle), (*first, *last))


def _say(key: str, question: str, figure: str, text: str) -> Statement:
    return Statement(key, question, figure, (Span(text),))


def _cell(row: Row) -> Span:
    return Span(row["name"], row["cell"])


def _speed(row: Row) -> float:
    return float(row["inter_token_speedup"])


def _recovery(row: Row) -> Any:
    """What the gate judges, in per cent; None where it is not available."""
    return row.get(quality_key(row))


def _judged(row: Row) -> str:
    return f"mean over {row['tasks_run']} tasks, " if judged_by_tasks(row) else ""


def _kept(row: Row) -> str:
    """Recovery, with the deviation where the row stands for several seeds."""
    text = f"{fixed(_recovery(row), 1)} %"
    deviation = seeds.spread(row, quality_key(row))
    if deviation is not None:
        text = f"{fixed(_recovery(row), 1)} ± {fixed(deviation, 1)} %"
    many = seeds.said(row)
    return f"{text} ({many})" if many else text


def _perplexity(row: Row) -> float:
    return float(row["perplexity"])


def _measured(row: Row) -> str:
    low, high = row["inter_token_speedup_low"], row["inter_token_speedup_high"]
    text = times(row["inter_token_speedup"])
    return text if low is None or high is None else f"{text} [{low:.2f}, {high:.2f}]"
