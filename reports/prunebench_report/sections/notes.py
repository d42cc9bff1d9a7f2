"""What methods, recoveries and metrics say about themselves: long lists as plots, the rest as text.

Notes are free: plugins write what they like. So the shape of a value decides how it is shown.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from prunebench_report.figures.axes import Frame
from prunebench_report.figures.bars import BARS, bars
from prunebench_report.figures.lines import DASHES, Series, Vertex, draw, legend
from prunebench_report.figures.scale import linear, linear_around
from prunebench_report.figures.svg import MARKS, Figure, plot
from prunebench_report.sections.provenance import flatten, in_words
from prunebench_report.text import Facts, clean, number, shorten

if TYPE_CHECKING:
    from prunebench.record.record import Record

_FEWEST, _MOST = 4, 400
"""Values that are drawn; fewer are text, and more would be no plot that anybody can read."""
_MOST_FIGURES = 12
# With more linears per layer, lines are easier to read than a plot of bars for each.
_MOST_BARS = 3
_LONGEST_NAME = 60
_LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")
_PATTERN = re.compile(r"(\d+):(\d+)")


class Notes(NamedTuple):
    """``facts`` as names and texts, ``figures`` for what is drawn."""

    facts: Facts
    figures: list[Figure]


def notes(record: Record) -> Notes:
    """The notes of one record."""
    recovery = {"recovery": record.recovery_notes} if record.recovery_notes else {}
    measured = record.quality.metrics if record.quality else []
    noted = {result.label: result.notes for result in measured if result.notes}
    every = {**record.method_notes, **recovery, **noted}
    figures: list[Figure] = []
    rest = _draw(every, "", record, figures)
    return Notes(in_words(flatten(rest)), figures)


def loss_curves(value: Any, path: str = "") -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """The curves among notes, as (path, [(step, loss), ...])."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from loss_curves(inner, f"{path} {key}".strip())
    elif isinstance(value, list):
        if (points := _pairs(value)) is not None:
            yield path, points
        else:
            for index, inner in enumerate(value):
                yield from loss_curves(inner, f"{path} {index + 1}")


def _draw(value: Any, path: str, record: Record, figures: list[Figure]) -> Any:
    """``value`` without what was drawn; floats have four digits."""
    # A plugin can note thousands of lists: what is beyond the limit stays text.
    if len(figures) < _MOST_FIGURES and (drawn := _figures(value, path, record)):
        figures += drawn
        return None
    if isinstance(value, Mapping):
        inner = {
            key: _draw(one, f"{path} {key}".strip(), record, figures) for key, one in value.items()
        }
        # What was drawn leaves no entry behind; what was None says so.
        return {key: one for key, one in inner.items() if one is not None or value[key] is None}
    if isinstance(value, list):
        left = [
            _draw(one, f"{path} {index + 1}", record, figures) for index, one in enumerate(value)
        ]
        return [one for one, was in zip(left, value, strict=True) if one is not None or was is None]
    return number(value, 4) if _is_number(value) and isinstance(value, float) else value


def _figures(value: Any, path: str, record: Record) -> list[Figure]:
    """The plots of one value; empty if it is better as text."""
    caption = shorten(clean(path.replace("_", " ")), _LONGEST_NAME)
    if isinstance(value, list) and (points := _pairs(value)) is not None:
        return [curve(caption, {caption: points})]
    if isinstance(value, list) and (numbers := _numbers(value)) is not None:
        # What is removed in order belongs to the scores of the same method.
        removed = _layer_list(record.method_notes.get("removed_in_order"))
        marked = removed if len(value) > max(removed, default=0) else ()
        name = "Layer" if len(value) == _layers(record) else "Number in the list"
        return [bars(caption, dict(enumerate(numbers)), name, marked)]
    return _by_layer(caption, value) if isinstance(value, Mapping) else []


def _by_layer(caption: str, value: Mapping[str, Any]) -> list[Figure]:
    """A mapping from paths with a layer's number to numbers."""
    numbers = _numbers(list(value.values()))
    if numbers is None:
        return []
    kinds: dict[str, dict[int, float]] = {}
    for path, one in zip(value, numbers, strict=True):
        found = _LAYER.search(str(path))
        if found is None:
            return []
        # 'layers.3.mlp.up_proj' is layer 3 of 'mlp.up_proj'.
        kinds.setdefault(str(path)[found.end() :], {})[int(found[1])] = one
    # One value for each kind has no course over layers.
    if max(map(len, kinds.values())) < 2:
        return []
    if len(kinds) <= _MOST_BARS:
        return [
            bars(
                clean(f"{caption} {kind}").strip(),
                dict(sorted(one.items())),
                "Layer",
            )
            for kind, one in kinds.items()
        ]
    return [curve(caption, {k: sorted(one.items()) for k, one in kinds.items()}, "Layer")]


def curve(
    caption: str,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    x_label: str = "Step",
    y_label: str = "",
) -> Figure:
    """A line for each name; points are (x, y)."""
    series = []
    for index, (name, points) in enumerate(curves.items()):
        vertices = tuple(Vertex(x, y, "") for x, y in points)
        # When the colours repeat, dashes tell the lines apart.
        dashes = index // MARKS % DASHES
        series.append(Series(clean(name), index, vertices, dashes, marks=False))
    xs = [x for points in curves.values() for x, _ in points]
    ys = [y for points in curves.values() for _, y in points]
    x = linear(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1)
    frame = Frame(x, linear_around(ys), x_label, y_label, height=1.5 * BARS)
    desc = " ".join(
        f"{clean(name)}: from {number(points[0][1], 4)} to {number(points[-1][1], 4)}."
        for name, points in curves.items()
    )
    svg = plot(caption, desc, frame.height, draw(frame, series))
    return Figure(caption, desc, svg, (), legend(series) if len(series) > 1 else ())


def _pairs(value: Sequence[Any]) -> list[tuple[float, float]] | None:
    """[[step, loss], ...] as points; None for anything else."""
    if not 2 <= len(value) <= _MOST or not all(
        isinstance(one, list) and len(one) == 2 and all(map(_is_number, one)) for one in value
    ):
        return None
    points = [(float(x), float(y)) for x, y in value]
    # Steps rise; pairs of anything else, such as ranges, need not.
    rising = all(a[0] < b[0] for a, b in itertools.pairwise(points))
    return points if rising else None


def _numbers(values: Sequence[Any]) -> list[float] | None:
    """Numbers, or N:M patterns as the share that they remove; None if one is anything else."""
    if not _FEWEST <= len(values) <= _MOST:
        return None
    found = []
    for one in values:
        if isinstance(one, str) and (pattern := _PATTERN.fullmatch(one)) and int(pattern[2]):
            found.append(1 - int(pattern[1]) / int(pattern[2]))
        elif _is_number(one):
            found.append(float(one))
        else:
            return None
    return found


def _is_number(value: Any) -> bool:
    # bool is an int in Python, but True is not 1.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and abs(value) < 1e30


def _layer_list(value: Any) -> list[int]:
    """The layers of a list of layers; empty for anything else."""
    whole = isinstance(value, list) and all(type(one) is int for one in value)
    return value if whole else []


def _layers(record: Record) -> int | None:
    return record.audit.layers_dense if record.audit else None
