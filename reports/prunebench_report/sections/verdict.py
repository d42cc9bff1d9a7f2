"""The verdict: a few generated sentences, each with its key figure and links to cells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from prunebench_report.data.claims import NEEDED, measuring_fault, sure_speedup, too_few_rounds
from prunebench_report.data.columns import Row
from prunebench_report.data.gate import (
    CANNOT_TELL,
    interval_of,
    judged_by_tasks,
    quality,
    quality_key,
)
from prunebench_report.data.groups import by_model
from prunebench_report.data.names import short_name
from prunebench_report.data.pareto import Measured, settled_speedup, surely_dominates
from prunebench_report.data.seeds import seed_count, seed_deviation
from prunebench_report.data.settings import same_setting, setting
from prunebench_report.text import TIMES, clean, fixed, number, percent, times

if TYPE_CHECKING:
    from prunebench_report.data.report_input import ReportInput

FAST = 1.2
"""The speed-up that the first statement asks for."""
Position = list[Measured]
"""Quality, speed and size of a row; larger is better."""
UNSURE = "unsure"
"""The figure of a statement if the gate is inside the intervals of the cells in question."""


@dataclass(frozen=True)
class Span:
    """A piece of a sentence; ``cell`` is the id of the row that it links to."""

    text: str
    cell: str | None = None


@dataclass(frozen=True)
class Statement:
    """One finding: the question, the figure that answers it, and a sentence."""

    key: str
    question: str
    figure: str
    spans: tuple[Span, ...]

    @property
    def text(self) -> str:
        return "".join(span.text for span in self.spans)


def section(given: ReportInput) -> list[Statement]:
    """Up to four statements for each model; a cell that missed what was asked for wins none."""
    missed = {record.id for record in given.records if record.audit and record.audit.missed}
    groups = by_model([row for row in given.results if row["cell"] not in missed])
    found: list[Statement] = []
    for model, rows in groups.items():
        suffix = f" ({model})" if len(groups) > 1 else ""
        found += _of_model(rows, given.gate, suffix)
    return found


def _of_model(rows: Sequence[Row], gate: float, suffix: str) -> list[Statement]:
    done = [row for row in rows if row["status"] == "ok"]
    pruned = [row for row in done if row["method"] != "dense"]
    if not pruned:
        return [_nothing(rows, done, suffix)]
    if all(row["dense_cell"] is None for row in pruned):
        return [_without_dense(pruned, suffix)]
    statements = (
        _quality_when_fast(pruned, gate, suffix),
        _speed_above_gate(pruned, gate, suffix),
        _dominated(pruned, suffix),
        _zeros(pruned, suffix),
        _faults(pruned, suffix),
    )
    return [statement for statement in statements if statement]


def _say(key: str, question: str, figure: str, *parts: str | Span) -> Statement:
    spans = tuple(Span(part) if isinstance(part, str) else part for part in parts)
    return Statement(key, question, figure, spans)


def _nothing(rows: Sequence[Row], done: Sequence[Row], suffix: str) -> Statement:
    question = f"Finished cells{suffix}"
    if done:
        return _say("nothing", question, str(len(done)), "No pruned cell gave a result yet.")
    statuses = Counter(row["status"] for row in rows)
    counts = ", ".join(f"{number} {status}" for status, number in statuses.items())
    return _say("nothing", question, "0", f"No cell gave a result: {counts}.")


def _without_dense(pruned: Sequence[Row], suffix: str) -> Statement:
    question = f"Against dense{suffix}"
    without = "No dense cell finished, so recovery and speed-up are unknown."
    known = [row for row in pruned if row["perplexity"] is not None]
    if not known:
        return _say("no-dense", question, "n/a", without)
    best = min(known, key=lambda row: float(row["perplexity"]))
    lowest = f" has the lowest perplexity, {number(best['perplexity'])}."
    return _say("no-dense", question, "n/a", f"{without} ", _link(best), lowest)


def _quality_when_fast(rows: Sequence[Row], gate: float, suffix: str) -> Statement | None:
    """The best cell that passes the gate and is surely `FAST` times as fast as dense."""
    question = f"Best quality at {FAST:g}{TIMES} speed or more{suffix}"
    timed = [row for row in rows if sure_speedup(row) is not None]
    if not timed:
        return _not_timed(rows, "quality", question)
    fast = [row for row in timed if (sure_speedup(row) or 0) >= FAST]
    if not fast:
        unproved = [row for row in timed if too_few_rounds(row) and _speed(row) >= FAST]
        if unproved:
            top = max(unproved, key=_speed)
            at = f", at {_measured(top)} dense speed per token. {_needs_rounds(top)}"
            return _say("quality", question, UNSURE, "The fastest is ", _link(top), at)
        top = max(timed, key=lambda row: (sure_speedup(row) or 0, not _no_gain(row), _speed(row)))
        none = f"No cell is surely {FAST:g}{TIMES} as fast per token as dense; the nearest is "
        return _say("quality", question, "none", none, _link(top), f" at {_measured(top)}.")
    judged = [row for row in fast if quality(row) is not None]
    if not judged:
        return None  # the quality of the fast cells is unknown
    passing = [row for row in judged if row["gate_passed"]]
    best = max(passing or judged, key=lambda row: (quality(row), sure_speedup(row)))
    tasks = f"mean over {best['tasks_run']} tasks; " if judged_by_tasks(best) else ""
    kept = (
        f"{_kept(best)} of dense quality ({tasks}perplexity {number(best['perplexity'])}) "
        f"at {_measured(best)} dense speed per token"
    )
    if not passing and any(row["gate_verdict"] == CANNOT_TELL for row in judged):
        none = f"No cell of that speed surely keeps {100 * gate:g} % of dense quality; the best, "
        return _say("quality", question, UNSURE, none, _link(best), f", keeps {kept}.")
    if not passing:
        none = f"No cell of that speed keeps {100 * gate:g} % of dense quality; the best, "
        return _say("quality", question, "none", none, _link(best), f", keeps {kept}.")
    figure = f"{fixed(quality(best), 1)} %"
    return _say("quality", question, figure, _link(best), f" keeps {kept}.")


def _speed_above_gate(rows: Sequence[Row], gate: float, suffix: str) -> Statement | None:
    limit = f"{100 * gate:g} %"
    over = " over tasks" if any(judged_by_tasks(row) for row in rows) else ""
    question = f"Best speed at {limit} recovery{over} or more{suffix}"
    judged = [row for row in rows if quality(row) is not None]
    if not judged:
        return None
    if not any(row["gate_passed"] for row in judged):
        best = max(judged, key=quality)
        unsure = any(row["gate_verdict"] == CANNOT_TELL for row in judged)
        surely = "surely " if unsure else ""
        none = f"No pruned cell {surely}keeps {limit} of dense quality; the best is "
        kept = f" with {_kept(best)}."
        return _say("speed", question, UNSURE if unsure else "none", none, _link(best), kept)
    passing = [row for row in judged if row["gate_passed"] and sure_speedup(row) is not None]
    if not passing:
        return _not_timed([row for row in judged if row["gate_passed"]], "speed", question)
    # Gains that are not sure count as 1, so that quality decides among them.
    best = max(passing, key=lambda row: (sure_speedup(row) or 0, quality(row)))
    kept = f"{_kept(best)} of dense quality"
    if too_few_rounds(best):
        text = f" keeps {kept} at {_measured(best)} dense speed per token. {_needs_rounds(best)}"
        return _say("speed", question, UNSURE, _link(best), text)
    if sure_speedup(best) == 1:
        slow = f" keeps {kept} but is not measurably faster than dense: {_measured(best)}."
        if measuring_fault(best):
            slow = f" keeps {kept}; nothing in it could make it faster than dense."
        return _say("speed", question, times(1.0), _link(best), slow)
    text = f" generates tokens at {_measured(best)} dense speed and keeps {kept}."
    return _say("speed", question, times(_speed(best)), _link(best), text)


def _needs_rounds(row: Row) -> str:
    return (
        f"Its {row['rounds']} rounds are too few to be sure of the best of all cells: that takes"
        f" {row[NEEDED]} undisturbed ones; raise min_rounds."
    )


def _not_timed(rows: Sequence[Row], key: str, question: str) -> Statement | None:
    """Say that the speed could not be measured here, and why; None if nobody tried."""
    reason = next((row["speed_not_measurable"] for row in rows if _unmeasured(row)), None)
    if reason is None:
        return None
    return _say(key, question, "n/a", f"Speed was not measurable here: {clean(reason)}.")


def _faults(rows: Sequence[Row], suffix: str) -> Statement | None:
    """Cells that measured faster than dense although nothing could make them so."""
    wrong = [row for row in rows if measuring_fault(row)]
    if not wrong:
        return None
    worst = max(wrong, key=_speed)
    return _say(
        "fault",
        f"Measuring faults{suffix}",
        str(len(wrong)),
        _link(worst),
        f" was timed at {_measured(worst)}, but runs dense kernels over as many bytes as dense. "
        "This is a fault of the measurement, not a speed-up: do not trust the speeds of this run.",
    )


def _unmeasured(row: Row) -> bool:
    return row.get("speed_not_measurable") is not None


def _no_gain(row: Row) -> bool:
    """Whether nothing in the cell could make it faster than dense."""
    return row.get("speedup_expected") is False


def _dominated(rows: Sequence[Row], suffix: str) -> Statement | None:
    """Methods that another method beats in quality, speed and size at the same setting."""
    positions = {row["cell"]: one for row in rows if (one := _position(row)) is not None}
    comparable = [row for row in rows if row["cell"] in positions]
    methods = list(dict.fromkeys(row["method"] for row in comparable))
    if len(methods) < 2:
        return None
    question = f"Dominated at the same setting{suffix}"
    compared, beaten = 0, []
    for members in same_setting(comparable):
        names = list(dict.fromkeys(row["method"] for row in members))
        if len(names) > 1:
            compared += len(names)
            beaten.append((members, _beaten_methods(members, names, positions)))
    if not compared:
        text = "No two methods were run at the same setting: pattern, zeros, removed parameters."
        return _say("dominated", question, "n/a", text)
    count = sum(len(found) for _, found in beaten)
    if not count:
        text = "At every setting that methods share, none is dominated in quality, speed and size."
        return _say("dominated", question, "none", text)
    parts: list[str | Span] = []
    for members, found in beaten:
        if found:
            parts += [". " if parts else "", *_who_beats_whom(setting(members[0]), found)]
    parts.append(": at least as good in quality, speed and size, and better beyond its error.")
    return _say("dominated", question, f"{count} of {compared}", *parts)


def _who_beats_whom(where: str, beaten: Mapping[str, Row]) -> list[str | Span]:
    """'At 50 % zeros, random and magnitude are dominated by wanda 0.5'."""
    by_winner: dict[str, list[str]] = {}
    for method, winner in beaten.items():
        by_winner.setdefault(winner["cell"], []).append(method)
    labels = {winner["cell"]: short_name(winner) for winner in beaten.values()}
    parts: list[str | Span] = [f"{where[0].upper()}{where[1:]}, "]
    for index, (cell, losers) in enumerate(by_winner.items()):
        verb = "" if index else " is dominated" if len(losers) == 1 else " are dominated"
        parts += [f"{'; ' if index else ''}{_listed(losers)}{verb} by ", Span(labels[cell], cell)]
    return parts


def _beaten_methods(
    rows: Sequence[Row], methods: Sequence[str], positions: Mapping[str, Position]
) -> dict[str, Row]:
    """For each method that is beaten in all its cells, the cell that beats the first of them."""
    beaten = {}
    for method in methods:
        others = [row for row in rows if row["method"] != method]
        winners = [_winner(row, others, positions) for row in rows if row["method"] == method]
        # One cell that nobody beats is enough to spare its method.
        if winners[0] is not None and all(winner is not None for winner in winners):
            beaten[method] = winners[0]
    return beaten


def _winner(row: Row, others: Sequence[Row], positions: Mapping[str, Position]) -> Row | None:
    """Of the cells that dominate this one, the best in quality."""
    mine = positions[row["cell"]]
    better = [other for other in others if surely_dominates(positions[other["cell"]], mine)]
    return max(better, key=quality, default=None)


def _position(row: Row) -> Position | None:
    """None if one of the three is not known."""
    speed = settled_speedup(row)
    if quality(row) is None or speed is None or row["disk_bytes"] is None:
        return None
    timed = interval_of(row, "inter_token_speedup") if speed != 1 else None
    return [
        Measured(quality(row), interval_of(row, quality_key(row))),
        Measured(speed, timed),
        Measured(-row["disk_bytes"]),
    ]


def _listed(words: Sequence[str]) -> str:
    """'random, imp and magnitude'."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _zeros(rows: Sequence[Row], suffix: str) -> Statement | None:
    """The measured speed-up of zeros in dense tensors, from which none is expected."""
    kept = [
        row
        for row in rows
        if row["speedup_expected"] is False
        and row["zeros"] > row["zeros_dense"]
        and row["inter_token_speedup"] is not None
    ]
    if not kept:
        return None
    question = f"Zeros in dense tensors{suffix}"
    middle = median(_speed(row) for row in kept)
    low, high = min(kept, key=_speed), max(kept, key=_speed)
    sparsities = [row["sparsity"] for row in kept]
    least, most = percent(min(sparsities), 0), percent(max(sparsities), 0)
    amount = least if least == most else f"{least} to {most}"
    if any(measuring_fault(row) for row in kept):
        return None  # `_faults` says so
    text = f"{amount} zeros in dense tensors bring no speed-up: the measured ratio is "
    if len(kept) == 1:
        only = f"{text}{_measured(high)} ("
        return _say("zeros", question, times(middle), only, _link(high), ").")
    first = (f"{text}{times(_speed(low))} (", _link(low), ")")
    last = (f" to {times(_speed(high))} (", _link(high), ").")
    return _say("zeros", question, times(middle), *first, *last)


def _link(row: Row) -> Span:
    return Span(row["name"], row["cell"])


def _speed(row: Row) -> float:
    return float(row["inter_token_speedup"])


def _kept(row: Row) -> str:
    """Recovery with its interval; for a row of several seeds with its deviation."""
    text = fixed(quality(row), 1)
    if (deviation := seed_deviation(row, quality_key(row))) is not None:
        text += f" ± {fixed(deviation, 1)}"
    text += " %"
    if (found := interval_of(row, quality_key(row))) is not None:
        text += f" [{fixed(found[0], 1)}, {fixed(found[1], 1)}]"
    seeds = seed_count(row)
    return f"{text} ({seeds})" if seeds else text


def _measured(row: Row) -> str:
    """The speed-up with its interval."""
    low, high = row["inter_token_speedup_low"], row["inter_token_speedup_high"]
    text = times(row["inter_token_speedup"])
    return text if low is None or high is None else f"{text} [{low:.2f}, {high:.2f}]"
