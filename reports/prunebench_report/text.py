"""Text for people: untrusted strings made harmless, numbers with their significant digits."""

from __future__ import annotations

import math
import re
from typing import Any

Facts = list[tuple[str, str]]
"""Names and values, as a definition list shows them."""

MISSING = "n/a"
TIMES = "\N{MULTIPLICATION SIGN}"
MINUS = "\N{MINUS SIGN}"

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])")
_HARMFUL = re.compile(
    # C0 and C1 controls except tab and newline
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"
    # bidirectional marks, overrides and isolates: text could read differently from what it is
    "\u200e\u200f\u202a-\u202e\u2066-\u2069"
    # lone surrogates, which UTF-8 cannot encode, and non-characters
    "\ud800-\udfff\ufffe\uffff]"
)


def clean(text: str) -> str:
    """``text`` without terminal sequences; characters that could break a page become U+FFFD."""
    plain = _ANSI.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return _HARMFUL.sub("\N{REPLACEMENT CHARACTER}", plain)


def shorten(text: str, limit: int) -> str:
    """The first ``limit`` characters, and how many were left out."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]} [... {len(text) - limit:,} more characters]"


def short_label(label: str) -> str:
    """A cell's name for a small space: option values without their names, recoveries by name.

    What tells it from cells of the same label stays: the run, the calibration, the seed.
    """
    # 'wanda sparsity=0.5 + lora rank=8 · cpu' becomes 'wanda 0.5 + lora · cpu'.
    label, dot, apart = label.partition(" · ")
    method, plus, recovery = re.sub(r"\b\w+=", "", label).partition(" + ")
    return f"{method}{plus}{recovery.partition(' ')[0]}{dot}{apart}"


def shorten_middle(text: str, limit: int) -> str:
    """At most ``limit`` characters: the beginning and the end, which tell names apart."""
    if len(text) <= limit:
        return text
    end = limit // 3
    return f"{text[: limit - end - 1]}…{text[-end:]}"


def tail(text: str, *, lines: int = 20, limit: int = 4000) -> str:
    """The end of a log: at most ``lines`` lines and ``limit`` characters."""
    # Cleaning can shorten the text, so clean more than is kept; a whole log may have megabytes.
    end = clean(text[-4 * limit :]).rstrip().splitlines()[-lines:]
    return "\n".join(end)[-limit:]


def finite(value: Any) -> Any:
    """``value``, or None if it is an infinite float or NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def number(value: float | None, digits: int = 3) -> str:
    """``value`` with ``digits`` significant digits and thousands separators; 'n/a' for None."""
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))  # the power of ten of the first digit
    if size >= 7 or size < -4:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return signs(f"{mantissa}e{int(exponent)}")
    return signs(f"{value:,.{max(0, digits - 1 - size)}f}")


def fixed(value: float | None, decimals: int) -> str:
    return MISSING if value is None else signs(f"{value:,.{decimals}f}")


def percent(share: float | None, decimals: int = 1) -> str:
    """A share as a percentage: 0.5 is '50.0 %'."""
    return MISSING if share is None else signs(f"{100 * share:,.{decimals}f} %")


def seconds(value: float | None) -> str:
    if value is None:
        return MISSING
    if abs(value) < 1:
        return f"{number(1000 * value)} ms"
    return f"{number(value)} s" if value < 600 else f"{value / 60:,.0f} min"


def size(value: float | None) -> str:
    """Bytes in decimal units, as disks and papers count them."""
    if value is None:
        return MISSING
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= factor:
            return f"{number(value / factor)} {unit}"
    return f"{value:,.0f} B"


def rate(bytes_per_s: float | None) -> str:
    return MISSING if bytes_per_s is None else f"{size(bytes_per_s)}/s"


def count(value: int | None) -> str:
    return MISSING if value is None else f"{value:,}"


def layer_ranges(layers: list[int]) -> str:
    """Consecutive layers in short: 'layers 2 to 5, 7'."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and runs[-1][-1] == layer - 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    words = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
    return f"layer{'s' if len(layers) > 1 else ''} {words}"


def times(value: float | None) -> str:
    """A ratio: '1.31' with the multiplication sign."""
    return MISSING if value is None else f"{value:.2f}{TIMES}"


def plus_minus(difference: float, decimals: int = 1) -> str:
    """A difference with its sign."""
    return signs(f"{difference:+.{decimals}f}")


def delta(ratio: float | None, reference: str = "dense") -> str | None:
    """How far a value is from dense.

    0.75 is '-25 %', 41 is '41 x dense' and 1 is '= dense', with typographic signs. None if the
    ratio is missing or not positive.
    """
    if ratio is None or ratio <= 0:
        return None
    change = 100 * (ratio - 1)
    if abs(change) < 0.05:
        return f"= {reference}"
    if ratio >= 10:  # '+4,000 %' is harder to grasp than '41 x'
        return f"{number(ratio, 2)}{TIMES} {reference}"
    return signs(f"{change:+.{1 if abs(change) < 10 else 0}f} %")


def longer(ratio: float) -> str:
    """How much longer something took: 1.38 is '38 % longer', 390 is '390 times as long'."""
    if ratio < 2:
        return f"{100 * (ratio - 1):.0f} % longer"
    return f"{number(ratio, 3 if ratio >= 100 else 2)} times as long"


def signs(text: str) -> str:
    return text.replace("-", MINUS)
