"""Axes: where a value lies on one, its ticks, and which values are too extreme to be drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prunebench_report.text import number, signs

# A gap of this many decades on a logarithmic axis, or of this factor on a linear one, sets the
# values above it apart.
_DECADES = 1.5
_FACTOR = 4.0
# On a linear axis the gap must also be wider than this many times the range of the other values.
_RANGES = 3.0
# A bar that is this many times the next one is cut, at a length that still shows that it is longer.
_CUT = 3.0
_SHOWN = 1.6
_MOST_TICKS = 6
_FEWEST_TICKS = 3
_MOST_DECADES = 8


@dataclass(frozen=True)
class Scale:
    """An axis from ``low`` to ``high``; values beyond its ends are drawn at the ends."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def share(self, value: float) -> float:
        """Where ``value`` is: 0 at the low end, 1 at the high end."""
        if value <= self.low:
            return 0.0
        if value >= self.high:
            return 1.0
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def beyond(self, value: float) -> bool:
        """Whether the axis ends below ``value``."""
        return value > self.high


def linear(low: float, high: float) -> Scale:
    """An axis with ticks at 1, 2 or 5 x 10^n; ``high`` is above ``low``."""
    step = nice((high - low) / _MOST_TICKS)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    # Rounded to the step's digits: 3 x 0.1 must print as 0.3.
    digits = max(0, 1 - math.floor(math.log10(step)))
    ticks = (round(index * step, digits) for index in range(first, last + 1))
    return Scale(low, high, tuple(tick for tick in ticks if low <= tick <= high))


def linear_around(values: Sequence[float], *, least: float = 0.0) -> Scale:
    """An axis with room around the values, at least ``least`` long; extreme ones are beyond it."""
    low, high = min(values), largest_drawn(values)
    missing = max(0.0, least - (high - low))
    low, high = low - missing / 2, high + missing / 2
    room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0  # some if all values are equal
    return linear(low - room, high + room)


def log_around(values: Sequence[float]) -> Scale:
    """A logarithmic axis with room around the values, which are positive."""
    low, high = min(values), largest_drawn(values, log=True)
    # A tenth of the range on either side; 1.08 is for a range of nothing.
    room = (high / low) ** 0.1 * 1.08
    low, high = low / room, high * room
    steps = (1, 2, 5) if high / low < 300 else (1,)  # fewer ticks over many decades
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = max(1, -(-(last - first) // _MOST_DECADES))
    ticks = (step * 10.0**power for power in range(first, last + 1, stride) for step in steps)
    inside = tuple(tick for tick in ticks if low <= tick <= high)
    # In a part of a decade, even steps have more ticks.
    if len(inside) < _FEWEST_TICKS and high / low < 10:
        inside = linear(low, high).ticks
    return Scale(low, high, inside, log=True)


def doubling(values: Iterable[float]) -> Scale:
    """A logarithmic axis whose ticks are the values, as for batch sizes 1, 2, 4, 8."""
    ticks = tuple(sorted(set(values)))
    room = (ticks[-1] / ticks[0]) ** 0.06 * 1.02
    return Scale(ticks[0] / room, ticks[-1] * room, ticks, log=True)


def largest_drawn(values: Sequence[float], *, log: bool = False) -> float:
    """The largest value that an axis should reach: what is far above all others is left out.

    At most a third of the values is left out. On a logarithmic axis they are more than 1.5 decades
    above the others, and further than the others are apart; on a linear one four times as large,
    and three times further than the others are apart.
    """
    ordered = sorted(values)
    # The lowest gap counts, but at least two thirds of the values stay below it.
    for index in range(max(1, len(ordered) - len(ordered) // 3 - 1), len(ordered) - 1):
        lowest, here, above = ordered[0], ordered[index], ordered[index + 1]
        if log:
            gap, spread = math.log10(above / here), math.log10(here / lowest)
            extreme = gap > max(_DECADES, spread)
        else:
            extreme = (
                here > 0 and above > _FACTOR * here and above - here > _RANGES * (here - lowest)
            )
        if extreme:
            return here
    return ordered[-1]


def longest_bar(lengths: Sequence[float]) -> float:
    """The value of a full bar; a bar that is several times all others is longer, and is cut there."""
    ordered = sorted(lengths)
    if len(ordered) > 2 and ordered[-1] > _CUT * ordered[-2]:
        return _SHOWN * ordered[-2]
    return ordered[-1] if ordered else 0.0


def nice(value: float) -> float:
    """The smallest 1, 2 or 5 x 10^n that is not below ``value``; 1 if it is not positive."""
    if value <= 0:
        return 1.0
    base = 10.0 ** math.floor(math.log10(value))
    # The tolerance absorbs rounding: 3 x 10^n over 3 must not become 2 x 10^n.
    return next(factor * base for factor in (1, 2, 5, 10) if factor * base >= value * (1 - 1e-9))


def tick_text(value: float) -> str:
    """A tick in few characters: '1,000', '0.05', '1e5'."""
    if abs(value) >= 1e5 or 0 < abs(value) < 1e-4:
        return number(value, 1)
    return signs(f"{value:,.6g}")
