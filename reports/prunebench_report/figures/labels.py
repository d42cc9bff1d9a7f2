"""Names beside the points of a plot, once for narrow plots and once for roomy ones."""

from __future__ import annotations

from collections.abc import Sequence

from prunebench_report.figures.axes import NARROW, ROOMY, Frame, ends
from prunebench_report.figures.label_placement import (
    Block,
    Label,
    apart,
    place_labels,
    point_block,
)
from prunebench_report.figures.svg import CHARACTER, FONT, Anchor, label, percent, pixels

_HEIGHT = 1.25 * FONT
_ANCHORS: dict[int, Anchor] = {-1: "end", 0: "middle", 1: "start"}


_RULE_PLACES: tuple[tuple[float, Anchor], ...] = (
    (1.0, "end"),
    (0.0, "start"),
    (0.5, "middle"),
    (0.75, "middle"),
    (0.25, "middle"),
)


def text_width(text: str) -> float:
    return CHARACTER * len(text) + 2


def rule_name(
    frame: Frame,
    value: float,
    text: str,
    points: Sequence[tuple[float, float]],
    taken: Sequence[Block] = (),
) -> tuple[str, Block]:
    """The name of a horizontal line where it covers no point and no block, or the fewest."""
    _, (_, y) = ends(frame, value)
    others = [*map(point_block, points), *taken]
    width = text_width(text)
    # The order of the loops is that of preference: the right end, above the line.
    options: list[tuple[bool, int, int, tuple[float, Anchor], bool, Block]] = []
    for share, anchor in _RULE_PLACES:
        for above in (True, False):
            left = {"start": 0.0, "middle": -width / 2, "end": -width}[anchor]
            top = y - 3 - FONT if above else y + 3
            block = Block((share, left), (share, left + width), top, top + FONT)
            covered = sum(not apart(block, one, NARROW) for one in others)
            outside = top < 0 or top + FONT > frame.height
            options.append((outside, covered, len(options), (share, anchor), above, block))
    *_, (share, anchor), above, block = min(options, key=lambda option: option[:3])
    shift = ({"start": 2.0, "middle": 0.0, "end": -2.0}[anchor], -4.0 if above else FONT + 1)
    return label(text, (share, y), shift=shift, anchor=anchor, kind="hint"), block


def names(
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    height: float,
    *,
    taken: Sequence[Block] = (),
    avoided: Sequence[Block] = (),
) -> str:
    """The texts beside their points, as far as there is room; earlier ones choose first."""
    widths = [text_width(text) for text in texts]
    drawn = []
    for kind, (least, most) in (("narrow", NARROW), ("roomy", ROOMY)):
        area = (least, most, height)
        placed = place_labels(points, widths, _HEIGHT, area, taken=taken, avoided=avoided)
        inner = "".join(
            _name(text, point, place)
            for text, point, place in zip(texts, points, placed, strict=True)
            if place is not None
        )
        if inner:
            drawn.append(f'<g class="name {kind}">{inner}</g>')
    return "".join(drawn)


def _name(text: str, point: tuple[float, float], place: Label) -> str:
    across, down = place.shift
    # Text is drawn on its baseline, which is below its middle.
    shift = (across, down + 0.35 * FONT)
    drawn = label(text, point, shift=shift, anchor=_ANCHORS[place.side])
    if not place.far:
        return drawn
    # Two thirds of the way, so that the line ends before the text.
    end = f"l{pixels(across * 2 / 3)} {pixels(down * 2 / 3)}"
    x, y = percent(point[0]), pixels(point[1])
    return f'<svg x="{x}" y="{y}"><path class="leader" d="M0 0{end}"/></svg>{drawn}'
